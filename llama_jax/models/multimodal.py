"""The seed's system: an encoder for each modality, cross-modal fusion, a decoder, and heads.

        ids ── text encoder ────┐             ┌── heads (MLM, NSP, matching, ...)
     pixels ── vision encoder ──┼── fusion ───┤
      video ── vision encoder ──┘             └── joined memory ── decoder ── logits

Any combination of modalities: what a batch lacks is an absent key, what an example lacks has no
valid token.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from llama_jax.checked import checked
from llama_jax.errors import UserError
from llama_jax.layers.cache import Cache
from llama_jax.layers.linear import Embed
from llama_jax.layers.norm import Norm, RMSNorm
from llama_jax.layers.stack import Stack
from llama_jax.models.decoder import Decoder
from llama_jax.models.fusion import Fusion
from llama_jax.models.heads import AlignHead, LabelHead, MaskedHead, PairHead, TiedHead
from llama_jax.models.image_tokenizer import ImageTokenizer
from llama_jax.models.language import Language
from llama_jax.models.logits import Logits
from llama_jax.models.pair_heads import ComparedModule, Pairing
from llama_jax.models.pixels import PixelModule
from llama_jax.models.text_encoder import TextEncoder
from llama_jax.models.tokens import Tokens, concatenate
from llama_jax.models.vision import VisionEncoder


@checked
class Multimodal:
    """Encoders, fusion, decoder and heads of one width.

    Attributes:
      text: text encoder; its vocabulary is the decoder's.
      fusion: how modalities learn of each other.
      vision: encoder of images, and of videos if they have none of their own; or None.
      video: encoder of videos, or None.
      decoder: reads the joined memory, or None for an encoder alone.
      masked: head that predicts masked tokens.
      align: projections into the shared space of the contrastive losses.
      labels: classes of the classification head.
      pairs: head of the two segments of a text: next sentence, sentence order.
      norm: what the memory passes before the decoder reads it, or None.
      shared: whether text encoder and decoder have one table of vectors.
      pictures: what makes words of pictures, for drawing, or None. The table has rows for them
        behind those of the text's vocabulary.
    """

    text: TextEncoder
    fusion: Fusion
    vision: VisionEncoder | None = None
    video: VisionEncoder | None = None
    decoder: Decoder | None = None
    masked: MaskedHead | TiedHead = MaskedHead()
    align: AlignHead = AlignHead()
    labels: LabelHead = LabelHead()
    pairs: Pairing = PairHead()
    norm: Norm | None = RMSNorm()
    shared: bool = True
    pictures: ImageTokenizer | None = None

    def __post_init__(self):
        names = ("text", "vision", "video", "decoder")
        parts = {name: getattr(self, name) for name in names}
        widths = {name: part.width for name, part in parts.items() if part is not None}
        if len(set(widths.values())) > 1:
            raise UserError(f"widths {widths} must be equal, for fusion adds the streams")
        if self.decoder is not None and self.decoder.vocab != self.text.vocab:
            raise UserError(
                f"text vocab {self.text.vocab} and decoder vocab {self.decoder.vocab} must be "
                "equal, for they share the embedding"
            )
        if self.pictures is not None and not (
            self.shared and self.decoder is not None and self.decoder.tied
        ):
            raise UserError(
                "words of pictures are rows of the shared table; give Multimodal(shared=True) and "
                "Decoder(tied=True)"
            )

    @property
    def language(self) -> Decoder | None:
        """The part that writes text, if there is one."""
        return self.decoder

    @property
    def causal(self) -> dict[str, tuple[int, Stack]]:
        """Where a causal model's layers may go: the first of each stack, by its path."""
        parts = {"text": self.text, "decoder": self.decoder}
        return {f"{name}/stack": (0, part.stack) for name, part in parts.items() if part}

    def empty_cache(self, batch: int, slots: int, dtype=jnp.float32, apart: bool = False) -> Cache:
        """A cache of the decoder for `slots` tokens of each of `batch` rows."""
        if self.decoder is None:
            raise UserError("this model has no decoder; give Multimodal(decoder=...)")
        return self.decoder.empty_cache(batch, slots, dtype, apart)

    def build(self, name: str | None = None) -> "MultimodalModule":
        """The module."""
        return MultimodalModule(self, name=name)


class MultimodalModule(Language):
    """See `Multimodal`. Only the parts that are called get parameters."""

    config: Multimodal

    def setup(self):
        cfg = self.config
        words = cfg.text.vocab + (cfg.pictures.codes if cfg.pictures else 0)
        self.table = Embed(words, cfg.text.width, name="embed") if cfg.shared else None
        self.text = cfg.text.build(embed=self.table)
        self.fusion = cfg.fusion.build()
        if cfg.norm is not None:
            self.norm = cfg.norm.build()
        if cfg.vision is not None:
            self.vision = cfg.vision.build()
            self.pixel_head = PixelModule(cfg.vision)
        if cfg.video is not None:
            self.video = cfg.video.build()
        if cfg.decoder is not None:
            self.decoder = cfg.decoder.part(self.table)
        if cfg.pictures is not None:
            self.pictures = cfg.pictures.build()
        self.masked_head = cfg.masked.build()
        self.next_head, self.order_head = cfg.pairs.build(), cfg.pairs.build()
        self.match_head = PairHead().build()
        self.label_head = cfg.labels.build()
        self.align_head = cfg.align.build()

    def encode_text(
        self,
        ids_BT: Int[Array, "B T"],
        valid_BT: Bool[Array, "B T"] | None = None,
        types_BT: Int[Array, "B T"] | None = None,
    ) -> Tokens:
        """Tokens of a text [B,T,D]; the first is `<cls>`."""
        return self.text(ids_BT, valid_BT, types_BT, dtype=self.dtype)

    def encode_image(
        self, pixels: Num[Array, "I ... Y X R"], valid_I: Bool[Array, " I"] | None = None
    ) -> Tokens:
        """Tokens of images [I,Y,X,R] or videos [I,T,Y,X,R]; [I,P,D]."""
        moves = pixels.ndim == 5 and pixels.shape[1] > 1  # a picture is a video of one frame
        if moves and self.config.video is not None:
            return self.video(pixels, valid_I, dtype=self.dtype)
        self._seeing()
        return self.vision(pixels, valid_I, dtype=self.dtype)

    @property
    def patch(self) -> tuple[int, int]:
        """Frames, and pixels a side, that one token of a picture stands for."""
        return self._seeing().patch

    def hide(
        self, video: Float[Array, "I T Y X R"], hidden_IP: Bool[Array, "I P"]
    ) -> Float[Array, "I T Y X R"]:
        """Pictures with a learned patch over the hidden ones."""
        return self.pixel_head.hide(video, hidden_IP)

    def pixels(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T A"]:
        """The pixels of the patch of each token of a picture."""
        return self.pixel_head(x_BTD)

    def _seeing(self) -> VisionEncoder:
        if self.config.vision is None:
            raise UserError("this model has no vision encoder; give Multimodal(vision=...)")
        return self.config.vision

    def reconstruct(self, pixels: Num[Array, "I Y X R"]) -> Float[Array, "I Y X R"]:
        """Pictures after the image tokenizer, about -1 to 1."""
        return self._pictures().reconstruct(pixels)

    def words_of(self, pixels: Num[Array, "I Y X R"]) -> Int[Array, "I P"]:
        """Pictures as ids of the decoder's vocabulary, row by row; no gradient goes through."""
        return self._pictures().codes(pixels) + self.config.text.vocab

    def paint(self, ids_IP: Int[Array, "I P"]) -> Float[Array, "I Y X R"]:
        """The pixels of ids that `words_of` gives, within -1 to 1."""
        return self._pictures().paint(ids_IP - self.config.text.vocab)

    def _pictures(self):
        if self.config.pictures is None:
            raise UserError(
                "this model has no words for pictures; give Multimodal(pictures=ImageTokenizer())"
            )
        return self.pictures

    def fuse(self, streams: dict[str, Tokens]) -> dict[str, Tokens]:
        """Each modality after it has learned of the others; all have the same number of rows."""
        return self.fusion(streams)

    def join(self, streams: dict[str, Tokens]) -> Tokens:
        """All streams in one memory for the decoder."""
        joined = concatenate(list(streams.values()))
        return joined if self.config.norm is None else joined.with_x(self.norm(joined.x))

    def mlm(self, x_BAD: Float[Array, "B A D"]) -> Logits:
        """What predicts masked tokens from their vectors."""
        if self.table is None:
            raise UserError("the masked head reads the shared table; give Multimodal(shared=True)")
        return self.masked_head.readout(x_BAD, self.table.w)

    def next(
        self, text: Tokens, ids_BT: Int[Array, "B T"], types_BT: Int[Array, "B T"] | None
    ) -> Float[Array, "B A"]:
        """Next-sentence logits of encoded texts: 0 = next, 1 = random."""
        return self._pair(self.next_head, text, ids_BT, types_BT)

    def order(
        self, text: Tokens, ids_BT: Int[Array, "B T"], types_BT: Int[Array, "B T"] | None
    ) -> Float[Array, "B A"]:
        """Sentence-order logits of encoded texts: 0 = right, 1 = swapped."""
        return self._pair(self.order_head, text, ids_BT, types_BT)

    def _pair(
        self,
        head: Any,
        text: Tokens,
        ids_BT: Int[Array, "B T"],
        types_BT: Int[Array, "B T"] | None,
    ) -> Float[Array, "B A"]:
        if not isinstance(head, ComparedModule):
            return head(text.x[:, 0])
        if self.table is None:
            raise UserError("ComparedPair reads the shared table; give Multimodal(shared=True)")
        return head(text, self.table(ids_BT, text.x.dtype), types_BT)

    def match(self, x_BD: Float[Array, "B D"]) -> Float[Array, "B A"]:
        """Image-text matching logits: 1 = match."""
        return self.match_head(x_BD)

    def classify(self, x_BD: Float[Array, "B D"]) -> Float[Array, "B A"]:
        """Logits of the labels."""
        return self.label_head(x_BD)

    def align(self, modality: str, x_BD: Float[Array, "B D"]) -> Float[Array, "B A"]:
        """Unit vectors in the shared space."""
        return self.align_head(modality, x_BD)

    def align_scale(self) -> Float[Array, ""]:
        """The factor of the similarities."""
        return self.align_head.scale()

    def align_bias(self) -> Float[Array, ""]:
        """The offset of the sigmoid loss."""
        return self.align_head.bias()
