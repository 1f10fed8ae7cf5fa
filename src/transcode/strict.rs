//! JSON kept as it is, but with the reader's limits and without duplicate names, which `serde_json::Value` would drop.

use std::fmt;

use serde::de::DeserializeSeed;
use serde::de::Deserializer;
use serde::de::Error;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::Value;

use super::read::Name;
use super::read::Place;

/// Reads any value.
pub(super) struct StrictValue<'r, 's> {
    pub place: &'r mut Place<'s>,
}

impl<'de> DeserializeSeed<'de> for StrictValue<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue<'_, '_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        self.place.enter()?;
        let mut list = Vec::new();
        while let Some(value) = sequence.next_element_seed(StrictValue { place: &mut *self.place })? {
            self.place.count()?;
            list.push(value);
        }
        self.place.leave();
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.place.enter()?;
        let mut object = serde_json::Map::new();
        while let Some(name) = map.next_key_seed(Name)? {
            self.place.count()?;
            let value = map.next_value_seed(StrictValue { place: &mut *self.place })?;
            if object.insert(name.into_owned(), value).is_some() {
                return Err(self.place.refuse("a name is given more than once"));
            }
        }
        self.place.leave();
        Ok(object.into())
    }
}
