"""Files of tensors, as containers: names, arrays and fields, of whatever model.

safetensors, source      Hugging Face's files, one or several, and `Source`, what all of them become
quantised                safetensors of other programs' packings, shown as plain ones
gguf, gguf_file          llama.cpp's: the header, the tensors; gguf_write writes them
gguf_scales              factors beside their matrices
pth                      Meta's, pickles that are opened as tensors alone
folder                   a folder that is there when all of it is written
"""
