//! fp32 kernels.
