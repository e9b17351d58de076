"""What traces leave behind in a lens and in this thread: nothing."""

from hybridlens.visits import HERE


def clean(lens) -> bool:
    """Whether a lens, and this thread, hold nothing of any trace."""
    running = lens.nnsight.interleaver
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in lens.hf_model.modules())
    return not (hooked or HERE.levels or HERE.visits or running.mediators or running.modules or running.interleaving)
