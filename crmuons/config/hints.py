"""Find the setting that a wrong name means: by its last part, by its names in other programs, and by its spelling."""

import difflib
from collections.abc import Iterable

# Names of a setting in other programs and in the predecessor.
OTHER_NAMES = {
    "data.max_muons_per_event": "max_multiplicity muon_cap",
    "data.prefetch_batches": "prefetch prefetch_factor",
    "data.shuffle_bytes": "shuffle buffer_size shuffle_buffer shuffle_size",
    "data.staging.dir": "cache cache_dir staging_dir scratch",
    "data.test_share": "test_split test_fraction test_size",
    "data.train": "data dataset datasets data_dir data_path input inputs input_files files train_data train_files path",
    "data.validation": "val valid validation_data val_data eval_data validation_files",
    "data.validation_share": "val_split validation_split val_fraction validation_fraction val_share val_size split",
    "model.critic_layers": "discriminator_layers num_critic_layers",
    "model.kind": "architecture arch model_type network model_name",
    "model.layers": "num_layers n_layers nlayers generator_layers",
    "model.shower_latents": "latent latents latent_dim latent_size noise_dim z_dim nz",
    "model.width": "hidden hidden_dim hidden_size hidden_units units channels d_model dim",
    "run.checkpoint_every": "save_every checkpoint_interval save_steps save_interval checkpoint_steps ckpt_every save_freq",
    "run.keep_checkpoints": "save_total_limit num_checkpoints max_checkpoints",
    "run.max_failures": "retries max_retries restarts",
    "run.name": "run_name",
    "run.resume": "restart continue resume_from load checkpoint ckpt load_checkpoint",
    "run.seed": "random_seed manual_seed rng random_state",
    "run.storage_path": "out output output_dir out_dir outdir logdir log_dir save_dir checkpoint_dir run_dir save_path storage "
    "workdir output_path directory folder runs runs_dir run_directory run_folder out_folder output_folder",
    "scaling.cpus_per_worker": "cpus num_cpus cores n_cpus cpus_per_task",
    "scaling.num_workers": "workers world_size nproc num_gpus gpus n_gpus ngpu devices num_devices num_processes nodes num_nodes "
    "nproc_per_node ranks n_workers nworkers gpu_ids",
    "scaling.threads_per_worker": "threads num_threads n_threads omp_num_threads nthreads",
    "scaling.use_gpu": "gpu cuda use_cuda device accelerator cpu",
    "tracking.enabled": "mlflow wandb track tracking use_mlflow",
    "tracking.experiment": "experiment_name project",
    "tracking.tensorboard": "tb tensorboard_dir use_tensorboard",
    "train.bf16": "amp fp16 mixed_precision precision half bfloat16 autocast dtype",
    "train.ema_decay": "ema",
    "train.events_per_worker": "batch_size batch batchsize bs minibatch minibatch_size mini_batch_size events_per_batch "
    "local_batch_size per_device_batch_size train_batch_size batch_events",
    "train.grad_accumulation": "accumulate gradient_accumulation accum accumulation_steps gradient_accumulation_steps "
    "grad_accumulation_steps accumulate_grad_batches",
    "train.frozen": "freeze freeze_layers frozen_layers freeze_generator freeze_multiplicity",
    "train.init_from": "pretrained pretrained_model pretrained_weights finetune fine_tune finetune_from fine_tune_from warm_start "
    "warmstart from_pretrained init initial_weights init_weights initial_model start_from parent_model weights",
    "train.log_every": "log_interval log_steps logging_steps log_freq log_frequency print_every log_every_n_steps",
    "train.loss": "loss_fn loss_function gan_loss criterion objective loss_type",
    "train.max_seconds": "time max_time time_limit timeout hours minutes seconds duration walltime max_hours max_minutes",
    "train.muons_per_event": "max_muons muons num_muons",
    "train.n_critic": "critic_steps critic_iters critic_iterations n_critic_steps num_critic_steps critic_updates ncritic n_dis n_disc "
    "num_critic disc_steps d_steps discriminator_steps n_discriminator",
    "train.optimizer.betas": "beta beta1 beta2 adam_betas b1 b2",
    "train.optimizer.critic_lr": "lr_d d_lr lr_c c_lr lr_critic lr_disc disc_lr discriminator_lr lr_discriminator "
    "critic_learning_rate discriminator_learning_rate",
    "train.optimizer.decay": "lr_decay scheduler lr_scheduler schedule lr_schedule lr_policy",
    "train.optimizer.final_lr_share": "min_lr final_lr lr_min eta_min",
    "train.optimizer.generator_lr": "lr_g g_lr lr_gen gen_lr lr_generator generator_learning_rate",
    "train.optimizer.kind": "optimizer optim optimiser optimizer_type optimizer_name",
    "train.optimizer.lr": "learning_rate learningrate learn_rate eta step_size lrate",
    "train.optimizer.max_grad_norm": "clip grad_clip gradient_clip clip_grad gradient_clipping clip_norm clip_value max_norm "
    "clip_grad_norm gradient_clip_val clip_gradients",
    "train.optimizer.warmup_steps": "warmup warm_up lr_warmup warmup_epochs warmup_iters",
    "train.penalty.kind": "penalty penalty_type gp_kind gp_type",
    "train.penalty.lambda_gp": "gp lambda lambda_ lambdagp gp_weight gp_lambda lambda_term penalty_weight gradient_penalty "
    "gradient_penalty_weight lambda_gradient_penalty",
    "train.profile_steps": "profile profiler",
    "train.epochs": "epoch num_epochs n_epochs nepochs max_epochs passes",
    "train.steps": "iterations num_iterations n_iterations n_iter niter iters "
    "max_iter max_iters max_steps num_steps n_steps nsteps total_steps train_steps training_steps",
    "train.validate_every": "eval_every val_every eval_interval eval_steps val_interval validation_every validation_interval "
    "val_check_interval test_every",
    "train.validation_events": "val_events eval_events num_validation n_validation num_val",
}  # fmt: skip
# Settings of other programs and of the predecessor that crmuons does not have, and the reason.
LEFT_OUT = {
    "compile torch_compile torch_compile_gen torch_compile_critic torchcompile jit": "it does not pay: 35 CPU-seconds to compile "
    "each network, for steps that are no faster, as the gradients are written by hand (docs/performance.md)",
    "cuda_empty_cache_interval cuda_empty_cache_threshold_mib empty_cache": "the sizes of batches are bounded, so torch's memory "
    "does not grow",
    "drop_empty_events drop_empty skip_empty": "the model of N learns from events without muons; generator and critic never get them",
    "gp_adapt_factor": "a change of train.adapt is one critic step, and a factor of 1.5 of the penalty",
    "token auto_token access_token": "settings are stored with the run, and a token is a secret: use `crmuons login`, or "
    "BEARER_TOKEN_FILE",
    "mps": "Apple's GPUs have no double precision, which the model of N needs",
}
_BY_OTHER_NAME = {name: path for path, names in OTHER_NAMES.items() for name in names.split()}
# difflib's ratio; `lerning_rate` and `learning_rate` have 0.96, `dropout` and any setting below 0.6.
_SURELY_A_TYPO = 0.8
# `nmae` and `name` have 0.75; names of settings that crmuons lacks (`activation`, `batchnorm`) at most 0.71.
_RELATED = 0.72


def why_left_out(path: str) -> str | None:
    """Return why crmuons has no setting of this name on purpose; None if it is a name like any other."""
    last = _last(path).lower().replace("-", "_")
    return next((reason for names, reason in LEFT_OUT.items() if last in names.split()), None)


def nearest(path: str, settings: Iterable[str]) -> str | None:
    """Return the valid setting that an unknown one means most likely; None if it is like none.

    Args:
        path: the unknown setting.
        settings: the dotted paths of all settings.
    """
    paths = list(settings)
    last = _last(path).lower().replace("-", "_")
    if meant := _BY_OTHER_NAME.get(path.lower().replace("-", "_").replace(".", "_")):
        return meant  # `run.dir` is `run_dir`, and not `data.staging.dir`.
    if same := [known for known in paths if _last(known) == last]:
        return max(same, key=lambda known: (_likeness(path, known), -len(known)))
    if last in _BY_OTHER_NAME:
        return _BY_OTHER_NAME[last]
    known = max(paths, key=lambda known: _likeness(path, known))
    names = {_last(known): known for known in paths} | _BY_OTHER_NAME
    name = max(names, key=lambda name: _likeness(last, name))
    if max(_likeness(last, name), _likeness(last, _last(known))) < _RELATED:
        return None
    surely = _likeness(last, name) > max(_likeness(last, _last(known)), _SURELY_A_TYPO)
    return names[name] if surely else known


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one[:200], other).ratio()
