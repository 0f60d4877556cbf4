"""The words the two planes exchange: records go up, snapshots come down.

Nothing of ours is imported here, so that both planes can depend on it and it on nobody.
"""
