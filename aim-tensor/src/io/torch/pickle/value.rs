//! What a pickle of `torch.save` can hold.

use std::ops::Range;

use safetensors::Dtype;

/// A value's number in [`Pickle::values`]. Containers refer to their items by it, so that values that contain each
/// other, or themselves, need no recursion anywhere.
pub(crate) type Id = u32;

/// Something a pickle may name. Nothing of it is called: each is a case in this reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `builtins.set`
    Set,
    /// `torch._utils._rebuild_tensor`, `_rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, which names the type beside an untyped storage.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its kin; none for an untyped one.
    Storage(Option<Dtype>),
    /// `torch.float32` and its kin.
    Dtype(Dtype),
    /// `torch.Size`
    Size,
    /// `torch.device`
    Device,
}

impl Global {
    /// The allowed ones.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("builtins" | "__builtin__", "set") => Self::Set,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("torch" | "torch.storage", "UntypedStorage") => Self::Storage(None),
            ("torch", name) => match storage_dtype(name) {
                Some(dtype) => Self::Storage(Some(dtype)),
                None => Self::Dtype(dtype(name)?),
            },
            _ => return None,
        })
    }
}

fn storage_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        "ComplexFloatStorage" => Dtype::C64,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        "complex64" => Dtype::C64,
        _ => return None,
    })
}

/// One value. Texts and bytes are ranges of the pickle.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    None,
    Bool,
    Int(i64),
    /// An integer of more than 64 bits.
    Long,
    Float,
    Text(Range<usize>),
    Bytes,
    Tuple(Vec<Id>),
    /// Lists and sets.
    List(Vec<Id>),
    Dict {
        items: Vec<(Id, Id)>,
        /// `OrderedDict`, which may carry attributes (PyTorch's `_metadata`); they are dropped.
        ordered: bool,
    },
    Global(Global),
    /// A number in [`Pickle::storages`].
    Storage(u32),
    /// A number in [`Pickle::tensors`].
    Tensor(u32),
    /// `torch.device(...)`
    Device,
}

impl Value {
    /// For messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) | Self::Long => "an integer",
            Self::Float => "a float",
            Self::Text(_) => "a string",
            Self::Bytes => "bytes",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict { .. } => "a dict",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Device => "a device",
        }
    }
}

/// A storage that the pickle refers to.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// None for an untyped one.
    pub(crate) dtype: Option<Dtype>,
    /// Its name, a range of the pickle.
    pub(crate) key: Range<usize>,
    /// Elements; bytes where it is untyped.
    pub(crate) numel: usize,
    /// First element and length of the part that is meant, in the legacy format.
    pub(crate) view: Option<(usize, usize)>,
}

/// A tensor: a window on a storage.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) storage: u32,
    pub(crate) dtype: Dtype,
    /// First element.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// Everything a pickle built.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) values: Vec<Value>,
    pub(crate) storages: Vec<Storage>,
    pub(crate) tensors: Vec<Tensor>,
    /// What it all is.
    pub(crate) root: Id,
    /// Bytes it took, the next pickle of a stream follows.
    pub(crate) length: usize,
}

impl<'a> Pickle<'a> {
    pub(crate) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// A text; none for anything else, and for bytes that are no UTF-8.
    pub(crate) fn text(&self, id: Id) -> Option<&'a str> {
        match self.value(id) {
            Value::Text(range) => std::str::from_utf8(self.bytes.get(range.clone())?).ok(),
            _ => None,
        }
    }
}
