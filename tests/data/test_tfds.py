"""Any TFDS name works as ours do; here a toy registered by the test stands for the others."""

import io
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from llama_jax.data import Captions, Labels, Loader, Stream, Tfds
from llama_jax.data.images import decode
from llama_jax.errors import UserError


class ToyClips(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("2.3.0")
    offline = False

    def _info(self) -> tfds.core.DatasetInfo:
        features: Any = {
            "image": tfds.features.Image(),
            "video": tfds.features.Tensor(shape=(6, 8, 8, 3), dtype=np.uint8),
            "caption": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=["still", "moving"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.offline:
            raise ConnectionError("host not found\nand a long story")
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 0, 0)).save(file, "PNG")
            file.seek(0)
            video = np.full((6, 8, 8, 3), 10 * i, np.uint8) + np.arange(6, dtype=np.uint8)[
                :, None, None, None]  # fmt: skip
            yield i, {"image": file, "video": video, "caption": [f"clip {i}", f"number {i}"],
                      "label": i % 2}  # fmt: skip


@pytest.fixture
def source(data_dir):
    return Tfds("toy_clips", data_dir=data_dir)


def test_a_tfds_name_is_prepared_and_read(source):
    rows = source.open()
    by_caption = {row["caption"][0]: row for row in rows}
    row = by_caption["clip 5"]
    assert decode(row["image"])[0, 0].tolist() == [5, 0, 0] and row["label"] == 1
    assert row["video"].shape == (6, 8, 8, 3) and row["caption"] == ["clip 5", "number 5"]


def test_clips_and_one_of_several_captions_make_a_batch(source, tokenizer):
    rows = source.open()
    task = Captions(16, image="video", frames=3, size=8)
    stream = Stream(source, task, 6)
    loader = Loader({"x": stream}, tokenizer)
    seen = set()
    for step in range(8):
        b = loader.batch(step)["x"]
        assert b["video"].shape == (6, 3, 8, 8, 3) == stream.fields(tokenizer)["video"][0]
        for i, text, video in zip(b["id"], b["text"], b["video"], strict=True):
            row = rows[int(i)]
            assert tokenizer.decode(text) in row["caption"]
            assert (video == row["video"][[1, 3, 5]]).all()
            seen.add(tokenizer.decode(text))
    assert len(seen) > 8  # both captions of most clips were drawn


def test_class_labels_are_numbers(source, tokenizer):
    stream = Stream(source, Labels(text=None, image="image", size=8), 6)
    b = Loader({"x": stream}, tokenizer).batch(0)["x"]
    assert sorted(b["label"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_a_data_set_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyClips, "offline", True)
    with pytest.raises(UserError, match="could not be prepared .*host not found") as error:
        Tfds("toy_clips", data_dir=str(tmp_path)).open()
    assert "\n" not in str(error.value) and "LLAMA_JAX_DATA" in str(error.value)


def test_another_version_is_refused(source):
    with pytest.raises(UserError, match="toy_clips"):
        Tfds("toy_clips", version="1.0.0", data_dir=source.data_dir).open()
