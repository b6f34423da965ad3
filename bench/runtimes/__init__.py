"""Other people's ways to compute a linear layer, behind one interface: what ``bench/peers.py`` compares with.

Nothing here imports sparsekern or, before it is used, torch: each file must also load in an environment
that a peer has to itself.
"""
