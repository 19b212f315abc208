"""What a block does between its matrix products: plain PyTorch, and fused by Triton.

Each file holds one operation twice. The plain one rounds where diffusers' block rounds and
gives its bits; it is the reference of the other and its fallback. The Triton kernel
computes in float32 and rounds once. `choice` runs each kernel once and compares.
"""
