"""From every format to every other; what is lost is said, what cannot be is refused."""

import json

import jax
import numpy as np
import pytest

from llama_jax.__main__ import main
from llama_jax.errors import FormatError, UserError
from llama_jax.train.load import load
from llama_jax.train.loop import train
from llama_jax.weights.convert import convert
from llama_jax.weights.opened import load_params, open_checkpoint
from llama_jax.weights.orbax import start_from
from tests.train.tiny import text_run, write_text
from tests.weights.small import BFLOAT16, save, weights

EMBED = "model.embed_tokens.weight"


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    )


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder with a tokenizer's files."""
    place = save(tmp_path / "hf-1.0", weights())
    (place / "tokenizer.json").write_text('{ "odd": "kept as it is" }\n')
    (place / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (place / "README.md").write_text("not copied")
    return place


def test_a_folder_becomes_a_folder_with_its_tokenizer_byte_for_byte(tmp_path, folder):
    said = []
    convert(folder, tmp_path / "out", "huggingface", say=said.append)
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names and said == []
    for name in names[1:2] + names[3:]:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    a, b = open_checkpoint(folder), open_checkpoint(tmp_path / "out")
    assert a.model == b.model and same(load_params(a), load_params(b))


def test_a_folder_becomes_a_run_and_a_run_a_folder(tmp_path, folder):
    convert(folder, tmp_path / "run", "orbax")
    a, run = open_checkpoint(folder), open_checkpoint(tmp_path / "run")
    assert (run.kind, run.model, run.source) == ("run", a.model, None)
    assert same(load_params(a), load_params(run))
    convert(tmp_path / "run", tmp_path / "back", "huggingface")
    assert same(load_params(a), load_params(open_checkpoint(tmp_path / "back")))
    assert (tmp_path / "back/tokenizer.json").read_bytes() == (
        folder / "tokenizer.json"
    ).read_bytes()
    half = load_params(run, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {BFLOAT16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ours, of one step."""
    place = tmp_path_factory.mktemp("trained")
    run = text_run(write_text(place / "text.txt"), steps=1)
    train(run, place / "run", progress=False)
    return place / "run"


def test_a_run_that_became_a_folder_and_a_run_again_can_be_fine_tuned(tmp_path, trained):
    opened = open_checkpoint(trained)
    assert opened.model.context == 16  # the length of its texts
    convert(trained, tmp_path / "hf", "huggingface")
    convert(tmp_path / "hf", tmp_path / "weights", "orbax")
    fresh = load_params(opened)
    began = start_from(tmp_path / "weights/checkpoints", jax.tree.map(jax.numpy.zeros_like, fresh))
    assert same(began, fresh)
    # A run straight to a run keeps its own tokenizer, so that training takes it as it is.
    convert(trained, tmp_path / "run", "orbax")
    assert same(load(tmp_path / "run").params, fresh)
    text = write_text(tmp_path / "text.txt")
    tuned = train(
        text_run(text, steps=1, init_from=str(tmp_path / "run")), tmp_path / "tuned", progress=False
    )
    assert tuned.step == 1 and np.isfinite(tuned.metrics["loss"])


def test_weights_alone_are_no_run_to_go_on_with(tmp_path, trained):
    convert(trained, tmp_path / "run", "orbax")
    text = tmp_path / "text.txt"
    run = text_run(write_text(text), steps=1)
    with pytest.raises(UserError, match="started with other settings"):
        train(run, tmp_path / "run", progress=False)
    state = train(run, tmp_path / "other", progress=False)
    del state
    (tmp_path / "other/checkpoints/1").rename(tmp_path / "gone")
    (tmp_path / "run/checkpoints/0").rename(tmp_path / "other/checkpoints/0")
    with pytest.raises(UserError, match="holds weights alone, from which a run can begin"):
        train(run, tmp_path / "other", progress=False)


def test_our_own_tokenizer_is_written_for_others(tmp_path, trained):
    import tokenizers

    from llama_jax.text.tokenizer import Tokenizer

    convert(trained, tmp_path / "hf", "huggingface")
    ours = Tokenizer.load(trained / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json"))
    text = "Lamb 7 saw the sea; naïve 🙂"
    assert theirs.encode(text).ids == ours.encode(text)
    assert theirs.token_to_id("<eos>") == ours.eos and theirs.encode("<eos>").ids == [ours.eos]
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (ours.bos, ours.eos)


@pytest.mark.parametrize(
    ("stored", "to", "dtype", "said"),
    [
        ("float32", "huggingface", "bfloat16", "float32 to bfloat16 rounds to fewer digits"),
        ("float32", "huggingface", "float16", "rounds to fewer digits and rounds numbers below"),
        (BFLOAT16, "huggingface", "float16", "bfloat16 to float16 rounds numbers below 6e-5"),
        (BFLOAT16, "huggingface", "float32", None),
        ("float16", "huggingface", "float32", None),
        ("float16", "orbax", "bfloat16", "float16 to bfloat16 rounds to fewer digits"),
    ],
    ids=str,
)
def test_what_is_lost_is_said_in_a_line(tmp_path, stored, to, dtype, said):
    heard = []
    convert(save(tmp_path / "a", weights(0, stored)), tmp_path / "b", to, dtype, say=heard.append)
    losses = [line for line in heard if "no tokenizer" not in line]
    assert len(losses) == (said is not None) and len(heard) - len(losses) == 1
    assert said is None or said in losses[0]


def test_types_stay_unless_asked(tmp_path):
    mixed = weights(0, BFLOAT16) | {"model.norm.weight": np.ones(16, "float32")}
    heard = []
    convert(save(tmp_path / "a", mixed), tmp_path / "b", "huggingface", say=heard.append)
    found = open_checkpoint(tmp_path / "b").source.tensors
    assert {tensor.dtype for tensor in found.values()} == {"bfloat16"}
    assert "float32 to bfloat16 rounds to fewer digits" in heard


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path, folder):
    for arguments, said in [
        (("hugingface",), "Did you mean 'huggingface'?"),
        (("huggingface", "floats16"), "Did you mean 'float16'?"),
        (("huggingface", "q8_0"), "q8_0 is a type of GGUF files"),
        (("gguf", "bfloat16"), "is written in float32, float16, q8_0"),
    ]:
        with pytest.raises(UserError) as caught:
            convert(folder, tmp_path / "out", *arguments)
        assert said in str(caught.value)
    with pytest.raises(UserError, match="is there already and is not empty"):
        convert(folder, folder, "huggingface")
    large = weights() | {EMBED: np.full((40, 16), 1e5, "float32")}
    with pytest.raises(FormatError, match="embed_tokens.* float16, which ends at 6.55e"):
        convert(save(tmp_path / "large", large), tmp_path / "out", "huggingface", "float16")
    nan = weights() | {EMBED: np.full((40, 16), np.nan, "float32")}
    with pytest.raises(FormatError, match="not finite"):
        convert(save(tmp_path / "nan", nan), tmp_path / "out", "huggingface")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf-1.0", "large", "nan"]


def test_the_command_line_says_what_it_did_and_what_is_wrong(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setattr("llama_jax.__main__._enable_compilation_cache", lambda cache: None)
    out = str(tmp_path / "out")
    assert main(["convert", str(folder), out, "--to", "huggingface", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "llama-jax: float32 to bfloat16 rounds to fewer digits"
    assert said[1] == f"llama-jax: huggingface checkpoint {folder} is now {out}, huggingface"
    for arguments, words in [
        ([str(tmp_path / "none"), out + "2", "--to", "orbax"], "does not exist"),
        ([str(folder), out, "--to", "huggingface"], "is not empty"),
        ([str(folder), out + "2", "--to", "pickle"], "invalid choice: 'pickle'"),
        ([str(folder), out + "2"], "required: --to"),
    ]:
        assert main(["convert", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_gguf_files_are_written_and_read(tmp_path, dtype):
    pytest.importorskip("llama_jax.weights.gguf_write")
    fields = {"hidden_size": 32, "intermediate_size": 64}
    folder = save(tmp_path / "hf", weights(**fields), **fields)
    heard = []
    convert(folder, tmp_path / "a.gguf", "gguf", dtype, say=heard.append)
    assert any("q8_0 keeps 8 bits" in line for line in heard) == (dtype == "q8_0")
    a, b = open_checkpoint(folder), open_checkpoint(tmp_path / "a.gguf")
    assert (b.kind, b.model) == ("gguf", a.model)
    tolerance = {"float32": 0, "float16": 1e-3, "q8_0": 2e-2}[dtype]
    for x, y in zip(*(jax.tree.leaves(load_params(c)) for c in (a, b)), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)
    if dtype != "float16":
        convert(tmp_path / "a.gguf", tmp_path / "back", "huggingface", say=heard.append)
        c = open_checkpoint(tmp_path / "back")
        assert {t.dtype for t in c.source.tensors.values()} == {"float32"}
        assert same(load_params(b), load_params(c))


def test_weights_go_on_without_a_tokenizer_that_has_no_form_there(tmp_path, trained):
    """GGUF has no name for the way in which a run's own tokenizer cuts texts into words."""
    for module in ("llama_jax.text.gguf", "llama_jax.weights.gguf_write"):
        pytest.importorskip(module)
    heard = []
    convert(trained, tmp_path / "run.gguf", "gguf", say=heard.append)
    assert len(heard) == 1 and heard[0].startswith(
        f"{tmp_path / 'run.gguf'} gets no tokenizer, for"
    )
    assert same(
        load_params(open_checkpoint(trained)), load_params(open_checkpoint(tmp_path / "run.gguf"))
    )
