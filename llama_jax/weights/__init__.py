"""Files of other worlds to our parameters and back, for any family in any format.

config.json, *.safetensors    formats/safetensors, source ──┐
*.gguf                        formats/gguf, gguf_file ──────┼── source: names, shapes, one tensor
params.json, *.pth            formats/pth ──────────────────┘
                              families: which model it is, which tensor is which weight
                              read, write: into the shards and out of them, layer by layer
run.json, checkpoints/        run

On a first reading go to opened.py, which opens any of them, and to convert.py.
"""
