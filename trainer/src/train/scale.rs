//! Dynamic loss scaling for f16 (arXiv 1710.03740, §3.2; the constants are torch.amp.GradScaler's): the loss is
//! multiplied by a scale so that small gradients do not vanish; where they overflow, the step is left out and the scale
//! halved; after many good steps it is doubled.

use serde::{Deserialize, Serialize};

/// log₂ of the scale at the start.
const START: i32 = 16;
/// Good steps before the scale is doubled.
const PATIENCE: u32 = 2000;

/// The scale, a power of two so that it changes no mantissa, and the good steps since it last changed. Part of the
/// resume state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LossScale {
    exponent: i32,
    good: u32,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { exponent: START, good: 0 }
    }
}

impl LossScale {
    /// What the loss is multiplied by.
    pub fn factor(self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// After a step whose gradients were all finite, or not.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = LossScale { exponent: self.exponent - 1, good: 0 };
        } else {
            self.good += 1;
            if self.good == PATIENCE {
                *self = LossScale { exponent: self.exponent + 1, good: 0 };
            }
        }
    }

    /// Whether the scale has fallen so low that overflow is not its fault.
    pub fn is_hopeless(self) -> bool {
        self.exponent < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_halves_and_two_thousand_good_steps_double() {
        let mut scale = LossScale::default();
        assert_eq!(scale.factor(), 65_536.0);
        scale.update(false);
        assert_eq!(scale.factor(), 32_768.0);
        (0..1999).for_each(|_| scale.update(true));
        assert_eq!(scale.factor(), 32_768.0);
        scale.update(true);
        assert_eq!(scale.factor(), 65_536.0);
        (0..17).for_each(|_| scale.update(false));
        assert!(scale.is_hopeless());
    }
}
