"""Tiny video files, made with PyAV and Pillow."""

import io

import numpy as np
from PIL import Image


def numbered(frames=12, size=(48, 32)):
    """Frames that get brighter by 20 each, uint8 [T, Y, X, 3]."""
    shades = np.arange(frames, dtype=np.uint8) * 20
    return np.broadcast_to(shades[:, None, None, None], (frames, size[1], size[0], 3)).copy()


def filmed(path, video, codec="mpeg4", rate=8, **options):
    """A file of frames [T, Y, X, 3], in the format of its ending."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = video.shape[2], video.shape[1]
        stream.pix_fmt = "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def animated(form, video, duration=100, **options):
    """The bytes of an animated GIF or WebP."""
    file, pictures = io.BytesIO(), [Image.fromarray(frame) for frame in video]
    options |= {"append_images": pictures[1:], "save_all": True, "duration": duration}
    pictures[0].save(file, form, **options)
    return file.getvalue()
