"""Text to numbers and back.

vocabulary.py    what data need of a tokenizer
tokenizer.py     a vocabulary of our own, for models trained from nothing
    tokenizer_file.py, old_tokenizer.py         its file, now and before
pretrained.py    tokenizers that come with real weights: open_tokenizer
    huggingface.py, spm.py, meta.py, gguf.py    their files ...
    bpe.py                                      ... and the library behind two of them
    config_files.py  files that name special tokens and the chat template
    export.py        files for other software
files.py         which files belong to a tokenizer, ours or not: open_for_training
messages.py      the turns of a conversation
chat.py          conversations as ids: chat_ids
    template.py, render.py, template_worker.py  the file's own Jinja template, in a cage
detokenize.py    text from a stream of tokens
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from llama_jax.text.chat import chat_ids
    from llama_jax.text.detokenize import Detokenizer
    from llama_jax.text.messages import Message
    from llama_jax.text.pretrained import Pretrained, open_tokenizer
    from llama_jax.text.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Message", "Pretrained", "Tokenizer", "chat_ids", "open_tokenizer"]
