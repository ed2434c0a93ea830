"""A file that would run a program when it is unpickled: no name and no option makes it run."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from llama_jax.errors import UserError
from llama_jax.weights.opened import load_params, open_checkpoint
from tests.weights.small import save, weights

ROOT = Path(__file__).parents[2]
NAMES = (
    *("consolidated.00.pth", "pytorch_model.bin", "model.pt", "model.pkl", "model.npy"),
    *("model.npz", "model.safetensors", "model.gguf"),
)


class Payload:
    """What it becomes is the result of a call."""

    def __init__(self, sentinel):
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return os.mkdir, (self.sentinel,)


def zipped(payload: bytes) -> bytes:
    """As torch writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("consolidated/data.pkl", payload)
        archive.writestr("consolidated/version", "3\n")
        archive.writestr("consolidated/byteorder", "little")
    return stream.getvalue()


def npy(payload) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([payload], object), allow_pickle=True)
    return stream.getvalue()


def npz(payload) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, weight=np.array([payload], object))
    return stream.getvalue()


@pytest.fixture
def forms(tmp_path):
    """The payload in every form, and the folder that it would make."""
    sentinel = tmp_path / "it-ran"
    bare = pickle.dumps({"tok_embeddings.weight": Payload(sentinel)})
    return {"bare": bare, "old": pickle.dumps(Payload(sentinel), 0), "zip": zipped(bare),
            "npy": npy(Payload(sentinel)), "npz": npz(Payload(sentinel))}, sentinel  # fmt: skip


def test_the_payload_works(forms):
    made, sentinel = forms
    pickle.loads(made["bare"])
    assert sentinel.exists()


CHILD = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "pickle.find_class" else None)
from llama_jax.errors import UserError
from llama_jax.weights.opened import load_params, open_checkpoint
for path in sys.argv[1:]:
    for allowed in (False, True):
        try:
            load_params(open_checkpoint(path, pickle=allowed))
            print("loaded", path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
print(seen)
"""


def test_no_file_name_and_no_option_makes_it_run(tmp_path, forms):
    made, sentinel = forms
    pytest.importorskip("llama_jax.weights.gguf")
    paths = []
    for name in NAMES:
        for form, content in made.items():
            folder = tmp_path / f"{name}-{form}"
            save(folder, weights())
            (folder / "model.safetensors").unlink()
            if name.endswith("pth"):
                (folder / "params.json").write_text('{"dim": 16, "n_layers": 1, "n_heads": 2}')
                (folder / "config.json").unlink()
            (folder / name).write_bytes(content)
            paths += [folder, folder / name]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[]"]
    assert not sentinel.exists()


def test_a_pickle_is_opened_only_when_allowed_by_name(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 16}')
    (tmp_path / "consolidated.00.pth").write_bytes(zipped(pickle.dumps({})))
    with pytest.raises(UserError, match="is a pickle, which can run any .* allow it .--allow-pick"):
        open_checkpoint(tmp_path)


def test_without_torch_an_allowed_pickle_is_refused_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "params.json").write_text('{"dim": 16}')
    (tmp_path / "consolidated.00.pth").write_bytes(zipped(pickle.dumps({})))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pth is read by torch alone.*pip install 'llama-jax\[par"):
        open_checkpoint(tmp_path, pickle=True)


def test_a_file_of_harmless_tensors_needs_the_permission_too(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.weights import test_meta

    folder = test_meta.save(tmp_path, test_meta.weights())
    assert torch.load(folder / "consolidated.00.pth", weights_only=True)
    with pytest.raises(UserError, match="--allow-pickle"):
        open_checkpoint(folder)
    load_params(open_checkpoint(folder, pickle=True))
