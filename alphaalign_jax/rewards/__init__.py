"""From text to reward: prompt template, exact verifiers on device, R_s and R_h, host reward models."""
