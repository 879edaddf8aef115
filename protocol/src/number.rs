//! Numbers that may be NaN or infinite. JSON has none of these, and a metric that became one must not be lost on the
//! way: they travel as the words `NaN`, `Infinity` and `-Infinity`, as in protobuf's JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use utoipa::{PartialSchema, ToSchema, openapi};

/// A number; where it is not finite, one of three words in JSON.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Default)]
pub struct Number(pub f64);

impl Number {
    /// Whether two are the same number: NaN is NaN, and there is one zero.
    pub fn same(self, other: Number) -> bool {
        self.0 == other.0 || self.0.is_nan() && other.0.is_nan()
    }
}

impl fmt::Display for Number {
    /// As in JSON, without quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            number if number.is_nan() => f.write_str("NaN"),
            f64::INFINITY => f.write_str("Infinity"),
            f64::NEG_INFINITY => f.write_str("-Infinity"),
            number => write!(f, "{number}"),
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"NaN\", \"Infinity\" or \"-Infinity\"")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Number, E> {
                match word {
                    "NaN" => Ok(Number(f64::NAN)),
                    "Infinity" => Ok(Number(f64::INFINITY)),
                    "-Infinity" => Ok(Number(f64::NEG_INFINITY)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl PartialSchema for Number {
    fn schema() -> openapi::RefOr<openapi::schema::Schema> {
        let number = openapi::ObjectBuilder::new().schema_type(openapi::schema::Type::Number);
        let word = openapi::ObjectBuilder::new()
            .schema_type(openapi::schema::Type::String)
            .enum_values(Some(["NaN", "Infinity", "-Infinity"]));
        openapi::OneOfBuilder::new()
            .item(number)
            .item(word)
            .description(Some("A number; one that is not finite is a word"))
            .into()
    }
}

impl ToSchema for Number {}

/// Plain numbers by name, as [`Number`]s in JSON: for `#[serde(with = …)]`.
pub(crate) mod by_name {
    use super::Number;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(values.iter().map(|(name, value)| (name, Number(*value))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = BTreeMap::<String, Number>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|(name, number)| (name, number.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_travels_as_a_word() {
        let numbers = [Number(1.5), Number(f64::NAN), Number(f64::INFINITY), Number(f64::NEG_INFINITY)];
        let text = serde_json::to_string(&numbers).unwrap();
        assert_eq!(text, r#"[1.5,"NaN","Infinity","-Infinity"]"#);
        let back: Vec<Number> = serde_json::from_str(&text).unwrap();
        assert!(numbers.iter().zip(&back).all(|(one, other)| one.same(*other)));
        assert!(serde_json::from_str::<Number>("\"nan\"").is_err());
        assert!(serde_json::from_str::<Number>("null").is_err());
        assert_eq!(serde_json::from_str::<Number>("3").unwrap(), Number(3.0));
    }

    #[test]
    fn nan_is_the_same_as_nan_and_there_is_one_zero() {
        assert!(Number(f64::NAN).same(Number(-f64::NAN)));
        assert!(Number(0.0).same(Number(-0.0)));
        assert!(!Number(1.0).same(Number(1.5)));
    }
}
