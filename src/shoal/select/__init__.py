"""Select: from scores and a budget to the layers that go, decided by the tournament."""
