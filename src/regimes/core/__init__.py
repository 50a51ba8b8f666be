"""What a network is: parameters, layers, states, losses, derivatives."""
