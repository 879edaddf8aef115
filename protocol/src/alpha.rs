//! α, the interpolation coefficient of WiSE-FT, as an exact decimal: two points are the same point only if
//! their α is, and binary floats make bad keys.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use utoipa::{PartialSchema, ToSchema, openapi};

/// α in ten-thousandths, 0 to 10,000. On the wire it is the JSON number 0.1, in SQL `numeric(5,4)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Alpha(u16);

impl Alpha {
    /// α = 0: the bare backbone.
    pub const ZERO: Alpha = Alpha(0);
    /// α = 1: the checkpoint itself.
    pub const ONE: Alpha = Alpha(10_000);

    /// From ten-thousandths; `None` above 10,000.
    pub fn from_ten_thousandths(units: i64) -> Option<Alpha> {
        u16::try_from(units).ok().filter(|u| *u <= 10_000).map(Alpha)
    }

    /// The nearest α to `value`; `None` outside [0, 1] or when it needs more than four decimals.
    pub fn from_f64(value: f64) -> Option<Alpha> {
        let units = (value * 10_000.0).round();
        if !units.is_finite() || (units / 10_000.0 - value).abs() > 1e-9 {
            return None;
        }
        Alpha::from_ten_thousandths(units as i64)
    }

    /// α in ten-thousandths.
    pub fn ten_thousandths(self) -> i64 {
        i64::from(self.0)
    }

    /// α as the nearest double, the one that arithmetic uses.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl std::fmt::Display for Alpha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_f64().fmt(f)
    }
}

impl Serialize for Alpha {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_f64())
    }
}

impl<'de> Deserialize<'de> for Alpha {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        Alpha::from_f64(value).ok_or_else(|| {
            D::Error::custom(format!("α = {value} is not a number from 0 to 1 with at most four decimals"))
        })
    }
}

impl PartialSchema for Alpha {
    fn schema() -> openapi::RefOr<openapi::schema::Schema> {
        openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::Number)
            .minimum(Some(0.0))
            .maximum(Some(1.0))
            .description(Some("α of WiSE-FT: 0 is the backbone, 1 the checkpoint; at most four decimals"))
            .into()
    }
}

impl ToSchema for Alpha {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_survives_json_exactly() {
        for tenth in 0..=10 {
            let alpha = Alpha::from_ten_thousandths(tenth * 1000).unwrap();
            let text = serde_json::to_string(&alpha).unwrap();
            assert_eq!(serde_json::from_str::<Alpha>(&text).unwrap(), alpha, "{text}");
        }
        assert_eq!(Alpha::from_f64(0.1).unwrap().to_string(), "0.1");
    }

    #[test]
    fn outside_the_line_and_too_fine_are_refused() {
        for text in ["-0.1", "1.1", "0.12345", "1e9"] {
            assert!(serde_json::from_str::<Alpha>(text).is_err(), "{text}");
        }
    }
}
