"""An experiment so small that running the whole pipeline shows its seams in little time."""

TINY = {
    "download.synthetic.num_images": 120,
    "download.synthetic.image_size": 16,
    "preprocess.image_size": 16,
    "train.unet.widths": "[8, 16]",
    "train.unet.attention": "[false, true]",
    "train.unet.time_embedding_dim": 16,
    "train.unet.norm_groups": 4,
    "train.diffusion.num_timesteps": 50,
    "train.num_steps": 6,
    "train.batch_size": 4,
    "train.warmup_steps": 1,
    "train.log_every": 2,
    "train.sample_every": 3,
    "train.num_grid_images": 4,
    "train.grid_sampling_steps": 2,
    "train.checkpoint_every": 3,
    "sample.num_images": 12,
    "sample.num_sampling_steps": 4,
    "sample.num_grid_images": 4,
    "sample.num_frames": 3,
    "reference.max_images_per_split": 12,
    "evaluate.kernel_subsets": 2,
    "evaluate.kernel_subset_size": 4,
}
"""Changes to the quickstart profile after which a stage takes little more than its imports."""
