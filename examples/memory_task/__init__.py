"""Recurrent PPO on a task that needs memory, before and after `seqkernels.integrations.sb3.fuse`."""
