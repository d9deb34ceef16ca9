//! Archives and pickles put together by hand, for tests: `torch.save` writes no broken ones.

/// The `ZIP` layout that `torch.save` writes, entries stored.
#[derive(Default)]
pub(crate) struct Zip {
    pub(crate) bytes: Vec<u8>,
    pub(crate) central: Vec<Vec<u8>>,
}

impl Zip {
    pub(crate) fn add(&mut self, name: &str, data: &[u8]) -> &mut Self {
        let offset = self.bytes.len() as u32;
        let size = (data.len() as u32).to_le_bytes();
        let shared = |version: &[u8]| {
            let mut header = version.to_vec();
            header.extend([0; 10]); // version, flags, method, time, date
            header.extend([0; 4]); // crc
            header.extend(size);
            header.extend(size);
            header.extend((name.len() as u16).to_le_bytes());
            header.extend([0; 2]);
            header
        };
        self.bytes.extend(shared(b"PK\x03\x04"));
        self.bytes.extend(name.bytes());
        self.bytes.extend(data);
        let mut central = shared(b"PK\x01\x02\0\0");
        central.extend([0; 10]); // comment, disk, attributes
        central.extend(offset.to_le_bytes());
        central.extend(name.bytes());
        self.central.push(central);
        self
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        self.finish_as(false)
    }

    /// With the 64-bit end of the directory, too.
    pub(crate) fn finish_as(&self, wide: bool) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let offset = bytes.len() as u64;
        let directory = self.central.concat();
        bytes.extend(&directory);
        let (count, size) = (self.central.len() as u64, directory.len() as u64);
        if wide {
            let record = bytes.len() as u64;
            bytes.extend(b"PK\x06\x06");
            bytes.extend(44u64.to_le_bytes());
            bytes.extend([0; 12]);
            for value in [count, count, size, offset] {
                bytes.extend(value.to_le_bytes());
            }
            bytes.extend(b"PK\x06\x07\0\0\0\0");
            bytes.extend(record.to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
        }
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        let (count, size, offset) = if wide {
            (u16::MAX, u32::MAX, u32::MAX)
        } else {
            (count as u16, size as u32, offset as u32)
        };
        bytes.extend(count.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    }
}

/// A pickle of protocol 2 around a body.
pub(crate) fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

/// An archive around a pickle, with one storage of four floats under the key `0`.
pub(crate) fn archive(body: &[u8]) -> Vec<u8> {
    let mut zip = Zip::default();
    zip.add("a/data.pkl", &pickle(body));
    zip.add("a/data/0", bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0]));
    zip.finish()
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn int(value: i32) -> Vec<u8> {
    [b"J", &value.to_le_bytes()[..]].concat()
}

pub(crate) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

/// `_rebuild_tensor_v2` on the storage `0`.
pub(crate) fn tensor(
    class: &str,
    numel: i32,
    offset: i32,
    shape: &[i32],
    strides: &[i32],
) -> Vec<u8> {
    let ints = |values: &[i32]| tuple(&values.iter().map(|&v| int(v)).collect::<Vec<_>>());
    let class = format!("ctorch\n{class}\n").into_bytes();
    let storage = tuple(&[text("storage"), class, text("0"), text("cpu"), int(numel)]);
    let storage = [storage, b"Q".to_vec()].concat();
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments = [storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), hooks];
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&arguments), b"R".to_vec()].concat()
}

pub(crate) fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(k, v)| [k.clone(), v.clone()].concat()).collect();
    [b"}(".to_vec(), items, b"u".to_vec()].concat()
}
