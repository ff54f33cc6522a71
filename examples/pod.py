"""The program to start on every host: a variational autoencoder on handwritten digits, over all of their devices.

On one machine, as two processes, `python examples/pod.py --coordinator localhost:12345 --num-processes 2 --process-id I` with I = 0
and 1. On a TPU pod, under Slurm or MPI, JAX knows all three. Every process reads its own part of the data.
With `--checkpoint FOLDER`, which all processes share, a run that was broken off goes on when all are started again.
"""

import argparse

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jvi

encoder, decoder = (jvi.networks.network(jvi.encoders.MLP(size, hidden=(128,))) for size in (16, 64))
guide = jvi.guides.conditional(encoder, lambda out: distrax.MultivariateNormalDiag(out[:8], jax.nn.softplus(out[8:]) + 1e-4))


def log_joint(params, x, z):
    log_prior = jnp.sum(distrax.Normal(0.0, 1.0).log_prob(z))
    return log_prior + jnp.sum(distrax.Bernoulli(logits=decoder.apply(params, z)).log_prob(x))


model = jvi.learned(lambda rng, x: decoder.init(rng, jnp.zeros(8)), log_joint)


def minibatches(images, size, seed):
    """This process's slice of every minibatch, for ever."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        yield from (images[order[i : i + size]] for i in range(0, len(images) - size + 1, size))


def main(num_steps, checkpoint, batch_size=128):
    me, count = jax.process_index(), jax.process_count()
    images = (load_digits().data > 7.5).astype(np.float32)[me::count]
    objective = jvi.per_example(jvi.iwae(model, guide, num_samples=5))
    svi = jvi.SVI(objective, jvi.optimizer(optax.adam, 1e-3))
    batches = minibatches(images, batch_size // count, seed=me)
    mesh = jvi.sharding.data_mesh()
    state, info = jvi.fit_batches(svi, jax.random.key(0), batches, num_steps=num_steps, mesh=mesh, checkpoint=checkpoint)
    if me == 0:
        print(
            f"{count} processes, {jax.device_count()} devices, {int(state.step)} steps: {info.bound[-100:].mean():.1f} nats an image"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in {"--coordinator": str, "--num-processes": int, "--process-id": int, "--checkpoint": str}.items():
        parser.add_argument(name, type=kind)  # the first three left out, JAX asks the cluster
    parser.add_argument("--num-steps", type=int, default=2_000)
    args = parser.parse_args()
    jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id, heartbeat_timeout_seconds=30)
    main(args.num_steps, args.checkpoint)
