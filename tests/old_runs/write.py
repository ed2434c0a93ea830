"""How the artefacts of this folder were made: runs, data and configs of commit 2babaf5.

It runs with that commit alone, whose names it uses, and is kept to show what is in the archive.
In a checkout of it, with this folder copied to its tests/:

    python -m tests.old_runs.write artefacts      # 2babaf5.tar.xz: as a user with one device
    python -m tests.old_runs.write found          # 2babaf5.json: what that commit finds in them

The second runs as the tests do, on eight simulated devices and without LLVM's optimizations.
"""

import importlib
import io
import json
import os
import pkgutil
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ARCHIVE, FOUND = HERE / "2babaf5.tar.xz", HERE / "2babaf5.json"
VOCAB, WIDTH = 276, 4

os.environ["JAX_PLATFORMS"] = "cpu"
if sys.argv[1:] == ["found"]:
    import tests.conftest  # noqa: F401  (before jax: its devices and compiler are the tests')

from llama_jax import axes, config, evals, objectives  # noqa: E402
from llama_jax.config import BPE, File, Run, class_name, to_json  # noqa: E402
from llama_jax.data import (  # noqa: E402
    Captions,
    Denoise,
    Describe,
    ImageFolder,
    JsonLines,
    Labels,
    LanguageModel,
    Masking,
    Mix,
    Parquet,
    PlainText,
    Prepared,
    Questions,
    SentencePairs,
    Stream,
    Tfds,
)
from llama_jax.data import Seq2Seq as Texts  # noqa: E402
from llama_jax.layers.attention import Attention  # noqa: E402
from llama_jax.layers.block import Block, Gated, Merged  # noqa: E402
from llama_jax.layers.divided import DividedBlock  # noqa: E402
from llama_jax.layers.mlp import MLP, SwiGLU  # noqa: E402
from llama_jax.layers.norm import LayerNorm, RMSNorm  # noqa: E402
from llama_jax.layers.positions import Learned, RelativeBias  # noqa: E402
from llama_jax.layers.rope import Llama3Rope, Rope  # noqa: E402
from llama_jax.layers.stack import Stack  # noqa: E402
from llama_jax.models import heads, stem, vision  # noqa: E402
from llama_jax.models.coattention import CoAttention  # noqa: E402
from llama_jax.models.decoder import Decoder, DecoderLM  # noqa: E402
from llama_jax.models.encoder_decoder import EncoderDecoder  # noqa: E402
from llama_jax.models.fusion import Concat, Late, Perceiver, Reading  # noqa: E402
from llama_jax.models.multimodal import Multimodal  # noqa: E402
from llama_jax.models.text import TextEncoder  # noqa: E402
from llama_jax.objectives import ITC, ITM, MLM, NSP, Caption, CausalLM, Seq2Seq  # noqa: E402
from llama_jax.train import optimizer, schedules  # noqa: E402
from llama_jax.train.optimizer import AdamW, Cosine, Muon  # noqa: E402
from llama_jax.train.parameters import Group  # noqa: E402

# ---------------------------------------------------------------------------- texts and pictures
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 230)}


def texts(place: Path) -> None:
    """Documents of three sentences, and pairs of texts."""
    lines = (
        f"Lamb {i} went to {i % 7} places. It saw the sea {i * 7} times. Then lamb {i} slept."
        for i in range(48)
    )
    (place / "lambs.txt").write_text("\n\n".join(lines))
    pairs = [{"source": f"{i} and {i + 1}", "target": f"{2 * i + 1}"} for i in range(24)]
    (place / "sums.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def pictures(place: Path) -> None:
    """Twelve squares of 16 x 16 pixels, with captions and questions."""
    from PIL import Image

    (place / "squares").mkdir()
    rows = []
    for i in range(12):
        colour, size = list(COLOURS)[i % 3], 4 + i
        image = Image.new("RGB", (16, 16), (240, 240, 240))
        image.paste(COLOURS[colour], (i % 4, 1, i % 4 + size // 2, 1 + size))
        image.save(place / f"squares/{i}.png")
        captions = [f"a {colour} square", f"{'small' if i < 6 else 'large'} and {colour}"]
        questions, answers = ["what color is it?", "is it red?"], [colour, "no" if i % 3 else "yes"]
        rows.append({"image": f"squares/{i}.png", "captions": captions} | {"questions": questions})
        rows[-1]["answers"] = answers
    (place / "squares.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ----------------------------------------------------------------------------------- what trained
TOKENIZER = BPE(VOCAB, (PlainText("lambs.txt"),))
FFN = SwiGLU(12)


def attention(**fields) -> Attention:
    return Attention(2, fields.pop("kv_heads", 1), 4, **fields)


def decoder() -> Run:
    """A language model of two layers, with dropout, over text; checkpoints of steps 3 and 6."""
    block = Block(attention(causal=True), FFN, dropout=0.1)
    return Run(
        name="decoder",
        model=DecoderLM(Decoder(VOCAB, WIDTH, Stack((block,), repeats=2), context=64)),
        data={"text": Stream(PlainText("lambs.txt"), LanguageModel(length=16), batch=8)},
        objectives={"lm": CausalLM(on="text")},
        optimizer=AdamW(rate=1e-2, schedule=Cosine(warmup=2)),
        tokenizer=TOKENIZER,
        steps=6,
        log_every=1,
        save_every=3,
        keep=2,
    )


def multimodal() -> Run:
    """The seed's system: five objectives of pre-training, and questions."""
    block = Block(attention(), FFN)
    patches = Block(attention(rope=Rope(theta=100.0, split=(0, 1, 1))), FFN)
    writer = Block(attention(causal=True), FFN, cross=attention(rope=None))
    squares = JsonLines("squares.jsonl")
    captions = Captions(length=12, answer_length=8, caption="captions", size=16)
    questions = Questions(length=16, answer_length=4, per_image=2, absent=0.3, size=16)
    return Run(
        name="multimodal",
        model=Multimodal(
            text=TextEncoder(VOCAB, WIDTH, Stack((block,)), types=2),
            vision=vision.VisionEncoder(
                WIDTH,
                vision.SpaceTime(Stack((patches,))),
                stem=stem.Convolutions((3,)),
                positions=Learned((1, 4, 4)),
                merge=2,
            ),
            fusion=CoAttention(attention(rope=None), block, layers=1),
            decoder=Decoder(VOCAB, WIDTH, Stack((writer,))),
            align=heads.AlignHead(width=4),
        ),
        data={
            "documents": Stream(
                PlainText("lambs.txt"), SentencePairs(length=24, mlm=Masking(predictions=4)), 8
            ),
            "captions": Stream(squares, captions, 8),
            "questions": Stream(squares, questions, 8),
        },
        objectives={
            "mlm": MLM(on="documents"),
            "nsp": NSP(on="documents"),
            "itc": ITC(on="captions"),
            "itm": ITM(on="captions", rows=8),
            "caption": Caption(on="captions"),
            "vqa": Seq2Seq(on="questions"),
        },
        optimizer=AdamW(rate=1e-2, schedule=Cosine(warmup=2), b2=0.98, weight_decay=0.05),
        tokenizer=BPE(VOCAB, (PlainText("lambs.txt"), squares)),
        steps=4,
        log_every=1,
        save_every=4,
        keep=1,
    )


def encoder_decoder() -> Run:
    """An encoder and a decoder of one embedding, from a text to a text."""
    writer = Block(attention(causal=True), FFN, cross=attention(rope=None))
    return Run(
        name="encoder_decoder",
        model=EncoderDecoder(
            TextEncoder(VOCAB, WIDTH, Stack((Block(attention(), FFN),))),
            Decoder(VOCAB, WIDTH, Stack((writer,))),
        ),
        data={"sums": Stream(JsonLines("sums.jsonl"), Texts(length=16, answer_length=6), 8)},
        objectives={"sum": Seq2Seq(on="sums", label_smoothing=0.1)},
        optimizer=AdamW(rate=1e-2, schedule=Cosine(warmup=2)),
        tokenizer=TOKENIZER,
        steps=4,
        log_every=1,
        save_every=4,
        keep=1,
    )


def on_prepared() -> Run:
    """Over prepared data: windows, Llama 3.1's rope, Muon, groups, an average, micro-batches."""
    near = attention(causal=True, window=6, rope=Llama3Rope(original=16))
    far = attention(causal=True, rope=Llama3Rope(original=16))
    pattern = (Block(near, MLP(16), norm=LayerNorm()), Block(far, FFN, post_norm=True))
    return Run(
        name="on_prepared",
        model=DecoderLM(Decoder(VOCAB, WIDTH, Stack(pattern))),
        data={"text": Stream(Prepared("prepared"), LanguageModel(length=16, pack="fit"), batch=16)},
        objectives={"lm": CausalLM(on="text")},
        optimizer=Muon(
            rate=1e-2, schedule=schedules.WSD(warmup=2), groups=(Group("*/ffn/*", 0.5),)
        ),
        tokenizer=File("prepared"),
        steps=4,
        accumulate=2,
        ema=0.9,
        log_every=1,
        save_every=4,
        keep=1,
    )


RUNS = (decoder, multimodal, encoder_decoder, on_prepared)


# ------------------------------------------------------------------- what a run.json can hold else
def values() -> list:
    """One value or more of every class that a run.json of this commit can name."""
    plain = attention(rope=None)
    stack = Stack((Block(plain, FFN, cross=Merged()),), repeats=1)
    cross = Stack((Block(plain, MLP(16), cross=Gated(plain, start=0.5), norm=LayerNorm()),), 2)
    text, late = TextEncoder(VOCAB, WIDTH, stack, types=2), Late()
    divided = DividedBlock(plain, plain, FFN)
    return [
        *(run() for run in RUNS),
        *(axes.DATA, axes.FSDP_TENSOR, axes.FSDP_TENSOR_RESIDUAL, config.Mesh(2, 1, 2, 1, 1, 2)),
        *(Tfds("glue/sst2", split="test[:10%]", limit=3), Parquet("a/*.parquet", ("text",))),
        *(ImageFolder("photos"), JsonLines("a.jsonl", image="file"), PlainText("texts/")),
        Mix((Prepared("a"), Prepared("b")), (3.0, 1.0)),
        *(Labels(), Denoise(length=32), Describe(prompt="what is it?"), Masking(rate=0.3)),
        *(Texts("translation.en", "translation.de", prefix="to German:"), LanguageModel(32, False)),
        *(evals.Scores("s", "text"), evals.ExactMatch("e", "a"), evals.Vqa("v", "a", every=5)),
        *(evals.Retrieval("r", "a"), evals.Matching("m", "a", limit=9)),
        *(divided, RelativeBias(2), Learned((4, 2)), RMSNorm(1e-6), stem.Patches(4, 2), stack),
        vision.VisionEncoder(WIDTH, vision.Factorised(stack, Stack((divided,)))),
        Multimodal(text, Concat(stack), masked=heads.TiedHead(), labels=heads.LabelHead(3)),
        Multimodal(text, Reading(cross), masked=heads.MaskedHead("silu")),
        Multimodal(text, Perceiver(4, stack, CoAttention(plain, Block(plain, FFN), share="all"))),
        *(late, heads.PairHead(), heads.AlignHead(temperature=0.1)),
        *(objectives.SigmoidITC("a"), objectives.RollITM("a"), objectives.SOP("a", weight=0.5)),
        *(objectives.Classify("a", labels=3), MLM("a", source="fused"), Caption("a")),
        *(optimizer.Adafactor(), optimizer.Lion(), optimizer.SGD(nesterov=True), AdamW(clip=None)),
        *(schedules.Constant(3), schedules.Linear(), Cosine(2, 0.0), Group("text/*", 0.1, "V")),
    ]


# Frozen dataclasses that are no configs, and bases of those that are.
OTHERS = {
    *("catalogue:Rows", "jobs:Job", "manifest:Manifest", "manifest:Shard", "base:Row", "base:Eval"),
    *("inputs:Inputs", "vision:Aligned", "block:Context", "cache:Cache", "cache:KV", "cache:Slots"),
    *("cache:LayerCache", "linear:Lettered", "pipeline:Deal", "readout:Readout", "tokens:Tokens"),
    *("alignment:_Pairs", "base:Loss", "base:Objective", "base:Vectors", "optimizer:Optimizer"),
    *("answer:Answer", "meshes:Layout"),
}
ROOMS = ("config", "axes", "data", "evals", "layers", "models", "objectives", "presets")
ROOMS += ("train.optimizer", "train.schedules", "train.parameters")


def check_all_are_there(found: list) -> None:
    """Looks for a frozen dataclass of which `values` has none."""
    have = {tag for value in found for tag in map(class_name, config._classes(value))}
    for room in ROOMS:
        package = importlib.import_module(f"llama_jax.{room}")
        inner = pkgutil.iter_modules(getattr(package, "__path__", []), package.__name__ + ".")
        for name in [package.__name__, *(module.name for module in inner)]:
            for cls in vars(importlib.import_module(name)).values():
                frozen = getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)
                if isinstance(cls, type) and frozen and cls.__module__ == name:
                    short = f"{name.rpartition('.')[2]}:{cls.__qualname__}"
                    assert class_name(cls) in have or short in OTHERS, class_name(cls)


def configs(place: Path) -> None:
    """The run.json of every preset, and `values` in one list."""
    from llama_jax import presets

    (place / "presets").mkdir()
    for name in presets.NAMES:
        (place / f"presets/{name}.json").write_text(to_json(presets.get(name)))
    check_all_are_there(values())
    each = [json.loads(to_json({"value": value})) for value in values()]
    (place / "values.json").write_text(json.dumps(each))


# ------------------------------------------------------------------------------------ the commands
def artefacts() -> None:
    """Makes everything in a folder of its own, so that paths in it are relative, and packs it."""
    from llama_jax.__main__ import main
    from llama_jax.train.loop import train

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        place = Path(folder)
        texts(place)
        pictures(place)
        configs(place)
        assert not main(["prepare", "lambs.txt", "prepared", "--vocab", str(VOCAB)])
        for run in RUNS:
            train(run(), run().name, progress=False)
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            for path in sorted(p for p in place.rglob("*") if p.is_file() and p.name != "lock"):
                entry = tarfile.TarInfo(path.relative_to(place).as_posix())
                entry.size = path.stat().st_size
                archive.addfile(entry, io.BytesIO(path.read_bytes()))


def found() -> None:
    """Notes what this commit finds in the archive."""
    from tests.old_runs import measure

    with tempfile.TemporaryDirectory() as folder:
        measure.unpack(folder)
        os.chdir(folder)
        FOUND.write_text(json.dumps(measure.everything(Path(folder)), indent=1) + "\n")


if __name__ == "__main__":
    {"artefacts": artefacts, "found": found}[sys.argv[1]]()
