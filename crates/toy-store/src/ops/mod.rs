//! The differentiable operations, each forward beside its backward.

mod activation;
mod attention;
mod linear;
mod loss;
mod norm;
mod pool;
mod rotary;

#[cfg(test)]
mod tests;

pub(crate) use attention::Heads;
pub(crate) use loss::Targets;
