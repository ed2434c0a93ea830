"""What is opened, and what is refused: one line that names the file or the tensor."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llama_jax.errors import FormatError, UserError
from llama_jax.formats import safetensors
from llama_jax.weights.opened import links_followed, load_params, open_checkpoint
from tests.weights.small import CONFIG, save, weights

ROOT = Path(__file__).parents[2]
Q = "model.layers.1.self_attn.q_proj.weight"


def refused(folder, said, read=True):
    with pytest.raises(FormatError) as caught:
        opened = open_checkpoint(folder)
        assert read, "it was to be refused before any tensor is read"
        load_params(opened)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_content_decides_what_is_opened(tmp_path):
    folder = save(tmp_path / "x", weights())
    opened = open_checkpoint(folder)
    assert (opened.kind, opened.place, opened.tokenizer_place) == ("huggingface", folder, None)
    (folder / "tokenizer.json").write_text("{}")
    file = open_checkpoint(folder / "model.safetensors")
    assert (file.kind, file.model, file.tokenizer_place) == ("huggingface", opened.model, folder)
    shards = save(tmp_path / "y", weights(), 3)
    [one] = shards.glob("*1-of*")
    assert len(open_checkpoint(one).source.tensors) == len(weights())


def test_a_folder_that_is_nothing_known_is_described(tmp_path):
    refused(tmp_path / "absent", "does not exist")
    refused(tmp_path, "holds nothing")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path, "holds a.txt; config.json with .safetensors")
    refused(tmp_path / "a.txt", "is no safetensors, GGUF or .pth file")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    refused(tmp_path, "pytorch_model.bin is a pickle")
    refused(tmp_path / "pytorch_model.bin", "is not opened; take the model's safetensors")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    refused(tmp_path, "holds a.gguf, b.gguf; give one of these files")
    save_file(weights(), tmp_path / "alone.safetensors")
    (tmp_path / "config.json").unlink()
    refused(tmp_path / "alone.safetensors", "has no config.json, which says what model")


def with_nan(found):
    found[Q] = found[Q].copy()
    found[Q][3, 4] = np.nan
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if k != Q}, f"tensor '{Q}' [16, 16] is missing"),
        (lambda w: w | {Q + "x": w[Q]}, "1 tensor(s) that this model does not have"),
        (
            lambda w: w | {Q: w[Q][:8].copy()},
            "has shape [8, 16], the configuration asks for [16, 16]",
        ),
        (
            lambda w: w | {Q: w[Q].astype("int8")},
            "is of type int8; F64, F32, F16, BF16 were expected",
        ),
        (with_nan, f"tensor '{Q}' holds values that are not finite"),
        (lambda w: w | {"model.layers.0.self_attn.q_proj.lora_A.weight": w[Q]}, "an adapter"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, change, said):
    refused(save(tmp_path, change(weights())), said)


def test_a_cut_file_is_refused_before_a_tensor_is_read(tmp_path):
    file = save(tmp_path, weights()) / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(tmp_path, "was it cut short?", read=False)
    file.write_bytes(whole + b"x")
    refused(tmp_path, "was it cut short?", read=False)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    opened = open_checkpoint(save(tmp_path, weights()))
    os.truncate(tmp_path / "model.safetensors", 2000)
    with pytest.raises(FormatError, match="became shorter"):
        load_params(opened)


def lies(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return len(text).to_bytes(8, "little") + text + data


def about(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (200_000_000).to_bytes(8, "little") + b"{}",
        lies({"a": about(0, 2**62, [2**60])}),
        lies({"a": about(0, 8, [2]), "b": about(4, 12, [2])}, bytes(12)),  # one over the other
        lies({"a": about(0, 8, [2]), "b": about(12, 20, [2])}, bytes(20)),  # a hole
        lies({"a": about(8, 0, [2])}, bytes(8)),
        lies({"a": about(0, 8, [2**63, 2**63])}, bytes(8)),
        lies({"a": about(0, 8, [-2, -1])}, bytes(8)),
        lies({"a": about(0, 8, [True, 2])}, bytes(8)),
        lies({"a": about(0, 8, "2")}, bytes(8)),
        lies({"a": []}, bytes(8)),
        lies(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b"}", bytes(8)),
        lies(b"[]"),
        lies(b'{"\xff":0}'),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, content):
    save(tmp_path, weights())
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, "model.safetensors is not a whole safetensors file", read=False)


def test_a_header_nested_too_deeply_for_pythons_reader_is_refused(tmp_path, monkeypatch):
    def loads(*_, **__):
        raise RecursionError

    save(tmp_path, weights())
    monkeypatch.setattr(safetensors, "json", types.SimpleNamespace(loads=loads))
    refused(tmp_path, "its header is no JSON: RecursionError", read=False)


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_an_index_must_tell_the_truth(tmp_path):
    for i, (change, said) in enumerate(
        [
            (lambda m: m.update({Q: "model-00001-of-00003.safetensors"}), "and it is not"),
            (lambda m: m.update({"x": "model-00001-of-00003.safetensors"}), "and it is not"),
            (lambda m: m.pop(Q), "is not in model.safetensors.index.json"),
            (lambda m: m.update({Q: "model-00009-of-00009.safetensors"}), "is not there"),
            (lambda m: m.update({Q: 7}), "has no weight_map"),
            (lambda m: m.clear(), "is missing"),
        ]
    ):
        folder = save(tmp_path / str(i), weights(), 3)
        edit_index(folder, change)
        refused(folder, said)


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = save(tmp_path, weights(), 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "model-00002-of-00003.safetensors is named by the checkpoint and is not there")


# The child says which files below the folder of the test it opened.
WATCH = """
import sys
import types
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from llama_jax.errors import FormatError
from llama_jax.weights.opened import load_params, open_checkpoint
import llama_jax.weights.read
del opened[:]
for folder in sys.argv[2:]:
    try:
        load_params(open_checkpoint(folder))
    except FormatError as error:
        print("refused:", error)
print([name for name in opened if name.startswith(sys.argv[1])])
"""


def test_an_index_leads_nowhere_outside_its_folder(tmp_path):
    """Parent, absolute path, link, NUL, a name of 300 characters: not one is opened."""
    outside = tmp_path / "outside"
    save(outside, weights())
    secret = str(outside / "model.safetensors")
    names = ["../outside/model.safetensors", secret, "link.safetensors", "model\0.safetensors"]
    names += [
        "x" * 300 + ".safetensors",
        "..",
        ".",
        "",
        "a/b.safetensors",
        "~/x",
        "model.safetensors\n",
    ]
    folders = []
    for i, name in enumerate(names):
        folders.append(save(tmp_path / f"in{i}", weights(), 2))
        (folders[-1] / "link.safetensors").symlink_to(secret)
        edit_index(folders[-1], lambda m, name=name: m.update({Q: name}))
    for file in ("model.safetensors", "config.json"):  # links in place of what is not listed
        folders.append(save(tmp_path / f"link-{file}", weights()))
        (folders[-1] / file).unlink()
        (folders[-1] / file).symlink_to(outside / file)
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(outside), *map(str, folders)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]" and len(lines) == len(folders) + 1


def test_a_folder_of_nothing_but_links_and_links_that_are_allowed_are_followed(tmp_path):
    place = save(tmp_path / "real", weights())
    view = tmp_path / "view"
    view.mkdir()
    for file in place.iterdir():
        (view / file.name).symlink_to(file)
    assert open_checkpoint(view).source is not None
    (view / "README.md").write_text("a file among links")
    with pytest.raises(FormatError, match=r"leads out .*--allow-links; allow_links=True"):
        open_checkpoint(view)
    with links_followed(False), pytest.raises(FormatError, match="leads out"):
        open_checkpoint(view)
    with links_followed():
        assert open_checkpoint(view).source is not None


def test_weights_of_another_name_beside_the_model_are_left_alone(tmp_path):
    place = save(tmp_path / "a", weights())
    data = (place / "model.safetensors").read_bytes()
    (place / "consolidated.safetensors").write_bytes(data)
    source = open_checkpoint(place).source
    assert source and {t.file.name for t in source.tensors.values()} == {"model.safetensors"}
    (place / "model.safetensors").rename(place / "other.safetensors")
    with pytest.raises(FormatError, match=r"has 2 \.safetensors files, none of them model"):
        open_checkpoint(place)


def test_links_of_hugging_faces_cache_are_followed(tmp_path):
    hub = tmp_path / "models--a--b"
    blobs, snapshot = hub / "blobs", hub / "snapshots" / "0123"
    save(blobs, weights())
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    load_params(open_checkpoint(snapshot))


def test_a_tied_model_may_repeat_its_embedding_but_nothing_else(tmp_path):
    found = weights(0, tie_word_embeddings=True)
    embedding = found["model.embed_tokens.weight"]
    same = save(tmp_path / "a", found | {"lm_head.weight": embedding}, tie_word_embeddings=True)
    opened = open_checkpoint(same)
    assert opened.unused == ("lm_head.weight",)
    assert "out" not in load_params(opened)["decoder"]
    other = save(tmp_path / "b", found | {"lm_head.weight": -embedding}, tie_word_embeddings=True)
    refused(other, "'lm_head.weight' is not 'model.embed_tokens.weight'")
    refused(save(tmp_path / "c", found), "tensor 'lm_head.weight' [40, 16] is missing")


def test_tables_of_rope_in_old_files_are_not_read(tmp_path):
    table = np.ones(2, "float32")
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": table for i in range(2)}
    opened = open_checkpoint(save(tmp_path / "a", weights() | old))
    assert set(opened.unused) == set(old)
    load_params(opened)
    beyond = {"model.layers.2.self_attn.rotary_emb.inv_freq": table}
    refused(save(tmp_path / "b", weights() | beyond), "does not have")


def test_a_run_of_another_kind_of_model_is_refused(tmp_path):
    from llama_jax import presets
    from llama_jax.config import to_json

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text(to_json(presets.get("seed_demo")))
    refused(tmp_path, "is a run of a Multimodal; only a Decoder")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="version"):
        open_checkpoint(tmp_path)
