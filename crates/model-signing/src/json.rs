//! JSON, read strictly: a key that is given twice is refused, because two readers may take different ones.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::SignatureError;

/// Four values a file, and a million files: a stranger's text must not take all memory.
const MAX_VALUES: usize = 4_000_000;

/// A JSON value. Numbers have no meaning in a signature, so none is kept.
#[derive(Debug)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads a document; `what` it is is said in the error.
    pub(crate) fn parse(text: &[u8], what: &str) -> Result<Self, SignatureError> {
        let unsound = |e: serde_json::Error| malformed(format!("{what} is not sound JSON: {e}"));
        let budget = Cell::new(MAX_VALUES);
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = Budget(&budget).deserialize(&mut reader).map_err(unsound)?;
        reader.end().map_err(unsound)?;
        Ok(value)
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The fields of an object, which is found `at` that place in the document.
    pub(crate) fn into_fields(self, at: &str) -> Result<Fields, SignatureError> {
        match self {
            Self::Object(fields) => Ok(Fields { at: at.to_owned(), fields }),
            other => Err(malformed(format!("{at} is {} and not an object", other.kind()))),
        }
    }

    fn into_text(self, at: &str) -> Result<String, SignatureError> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(malformed(format!("{at} is {} and not a string", other.kind()))),
        }
    }
}

/// The fields of an object that are not looked at yet.
pub(crate) struct Fields {
    at: String,
    fields: BTreeMap<String, Json>,
}

impl Fields {
    fn place(&self, key: &str) -> String {
        format!("{}.{key}", self.at)
    }

    /// A field that may be absent; null counts as that.
    pub(crate) fn optional(&mut self, key: &str) -> Option<Json> {
        self.fields.remove(key).filter(|value| !matches!(value, Json::Null))
    }

    fn required(&mut self, key: &str) -> Result<Json, SignatureError> {
        self.optional(key).ok_or_else(|| malformed(format!("{} is missing", self.place(key))))
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<String, SignatureError> {
        self.required(key)?.into_text(&self.place(key))
    }

    /// A string that may be absent; an empty one counts as that.
    pub(crate) fn optional_text(&mut self, key: &str) -> Result<Option<String>, SignatureError> {
        let Some(value) = self.optional(key) else { return Ok(None) };
        value.into_text(&self.place(key)).map(|text| Some(text).filter(|text| !text.is_empty()))
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, SignatureError> {
        match self.required(key)? {
            Json::Bool(flag) => Ok(flag),
            other => Err(malformed(format!("{} is {} and not a boolean", self.place(key), other.kind()))),
        }
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Fields, SignatureError> {
        self.required(key)?.into_fields(&self.place(key))
    }

    pub(crate) fn list(&mut self, key: &str) -> Result<Vec<Json>, SignatureError> {
        match self.required(key)? {
            Json::List(list) => Ok(list),
            other => Err(malformed(format!("{} is {} and not a list", self.place(key), other.kind()))),
        }
    }

    /// A list of strings; one that is absent is empty.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Vec<String>, SignatureError> {
        if !self.fields.contains_key(key) {
            return Ok(Vec::new());
        }
        let place = self.place(key);
        self.list(key)?.into_iter().map(|value| value.into_text(&format!("an entry of {place}"))).collect()
    }

    /// The only object of a list that must have one.
    pub(crate) fn only(&mut self, key: &str) -> Result<Fields, SignatureError> {
        let place = self.place(key);
        match <[Json; 1]>::try_from(self.list(key)?) {
            Ok([one]) => one.into_fields(&place),
            Err(others) => Err(malformed(format!("{place} has {} entries and not one", others.len()))),
        }
    }

    /// Refuses what was not looked at: nobody vouches for it.
    pub(crate) fn end(self) -> Result<(), SignatureError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(key) => Err(malformed(format!("{} is no field of the format", self.place(key)))),
        }
    }
}

pub(crate) fn malformed(what: String) -> SignatureError {
    SignatureError::Malformed(what)
}

/// How many more values are read.
#[derive(Clone, Copy)]
struct Budget<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Budget<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => self.0.set(left),
            None => return Err(D::Error::custom("it has more values than any signature")),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Budget<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is given twice")));
            }
            fields.insert(key, map.next_value_seed(self)?);
        }
        Ok(Json::Object(fields))
    }
}
