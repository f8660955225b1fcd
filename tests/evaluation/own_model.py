import torch


class OwnModel(torch.nn.Module):
    """A user's own model, which gets whole episodes: here it asks a method, and notes how many ways there were."""

    def __init__(self, method):
        super().__init__()
        self.method, self.ways = method, set()

    def forward(self, episode):
        self.ways.add(episode.way)
        return self.method(episode)
