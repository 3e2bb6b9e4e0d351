"""A plain rollout of verl for tests on a CPU: one process that samples with transformers' `generate`."""

import ray
import torch
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

SERVER = "plain_rollout_{}"


@ray.remote(num_cpus=0)
class Server:
    """Samples from its own copy of the policy."""

    def __init__(self, path):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.steps = 0

    @torch.no_grad()
    def generate(self, request_id, prompt_ids, sampling_params, **kwargs):
        limit = sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens") or 8
        warm = sampling_params["temperature"] > 0
        out = self.model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids)),
            do_sample=warm,
            temperature=sampling_params["temperature"] if warm else None,
            top_k=0,
            max_new_tokens=limit,
        )
        tokens = out[0, len(prompt_ids) :]
        logits = self.model(out).logits[0, len(prompt_ids) - 1 : -1] / (sampling_params["temperature"] or 1.0)
        log_probs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        found = {"global_steps": self.steps}
        return TokenOutput(
            token_ids=tokens.tolist(), log_probs=log_probs.tolist(), stop_reason="completed", extra_fields=found
        )

    def load(self, weights, steps):
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}, missing  # which may be tied
        self.steps = steps or 0

    def wake_up(self):
        """Nothing sleeps."""

    def sleep(self):
        """Nothing sleeps."""


class PlainRollout(base.BaseRollout):
    """The part of the rollout in the training process: it hands over the weights."""

    async def resume(self, tags):
        """Nothing was released."""

    async def release(self):
        """Nothing is released."""

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **kwargs):
        server = ray.get_actor(SERVER.format(0))
        await server.load.remote({name: tensor.detach().cpu() for name, tensor in weights}, global_steps)


class PlainReplica(RolloutReplica):
    """One server."""

    async def launch_servers(self):
        name = SERVER.format(self.replica_rank)
        self._server_handle = Server.options(name=name).remote(self.model_config.path)
        self._server_address = name
        self.servers = [self._server_handle]


RolloutReplicaRegistry.register("plain", lambda: PlainReplica)
base._ROLLOUT_REGISTRY["plain", "async"] = f"{__name__}.PlainRollout"


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """Reward of a response: half of all texts are right."""
    return float(sum(map(ord, solution_str)) % 2)
