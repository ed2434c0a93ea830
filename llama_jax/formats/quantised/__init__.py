"""Quantised safetensors, shown as plain ones: a matrix is expanded when it is read.

    scheme = scheme_of(config, file)              # from quantization_config; None without one
    source = expanded(safetensors(folder), scheme)
    source.read("model.layers.0.mlp.up_proj.weight")   # numbers, whatever it was packed in

scheme                   which scheme a config.json names
float8, float4, integers how matrices are packed, each a type: what it needs, what it gives
gptq, awq, bitsandbytes, compressed, fp8, modelopt   the schemes: which module is in which of them
bits, blocks, rows       fields of bits; scales of blocks; a matrix made some rows at a time
parts, expand            the tensors of a module; the whole source

A value is what the program gives that the files come from, bit for bit, in the type in which that
program computes it. Activations are never quantised here: what a file says of them is not read.
"""
