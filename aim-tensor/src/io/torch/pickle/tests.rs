//! Pickles that would run code, take all memory or never end, in Python or in a careless reader.

use super::*;
use crate::io::torch::Fault;
use crate::io::torch::forge::{int, pickle, text, tuple};

fn reason(body: &[u8]) -> Fault {
    let bytes = pickle(body);
    parse(&bytes).map(|pickle| format!("{pickle:?}")).unwrap_err()
}

#[track_caller]
fn refused(body: &[u8], expected: &str) {
    let fault = reason(body);
    assert!(fault.refused && fault.reason.contains(expected), "{expected:?} in {fault:?}");
}

#[track_caller]
fn malformed(body: &[u8], expected: &str) {
    let fault = reason(body);
    assert!(!fault.refused && fault.reason.contains(expected), "{expected:?} in {fault:?}");
}

#[test]
fn code_is_refused_by_name() {
    refused(b"cos\nsystem\n(X\x02\0\0\0idtR", "it names `os.system`");
    refused(b"cposix\nsystem\n", "it names `posix.system`");
    refused(b"c__builtin__\neval\n", "`__builtin__.eval`");
    refused(b"cbuiltins\ngetattr\n(cos\nsystem\n", "`builtins.getattr`");
    refused(b"csubprocess\nPopen\n", "`subprocess.Popen`");
    refused(b"ctorch\nload\n", "`torch.load`");
    refused(b"ctorch.storage\n_load_from_bytes\n", "`torch.storage._load_from_bytes`");
    refused(b"ctorch.hub\nload\n", "`torch.hub.load`");
    refused(b"ctorch\nQInt8Storage\n", "`torch.QInt8Storage`");
    refused(b"c\n\n", "it names `.`");
    // The name of a module comes before that of what is in it.
    let stack = [text("os"), text("system"), b"\x93".to_vec()].concat();
    refused(&stack, "`os.system`");
    refused(b"(ios\nsystem\n", "builds an object of `os.system` (INST)");
    refused(b"(o", "(OBJ)");
    refused(b"ctorch\nSize\n)\x81", "(NEWOBJ)");
    refused(b"ctorch\nSize\n)}\x92", "(NEWOBJ_EX)");
    refused(b"\x82\x01", "registered extension");
    refused(b"P0\n", "PERSID");
    refused(b"\x97", "buffer");
    refused(b"S'a'\n", "protocol 0");
    let module = tuple(&[text("module"), text("x"), text("y"), text("z"), int(0)]);
    refused(&[module, b"Q".to_vec()].concat(), "source code of a module");
}

#[test]
fn nothing_but_the_list_is_called() {
    refused(b"X\x01\0\0\0a)R", "it calls a string");
    refused(b"])R", "it calls a list");
    refused(b"ctorch\nFloatStorage\n)R", "calls Storage(Some(F32)) with 0 arguments");
    refused(b"ctorch\nfloat32\n)R", "calls Dtype(F32)");
    refused(b"ctorch._utils\n_rebuild_tensor_v2\n)R", "calls RebuildTensor with 0 arguments");
    malformed(b"ccollections\nOrderedDict\n]R", "without a tuple of arguments");
    malformed(b"ctorch\nSize\n(]tR", "calls something with a list");
    malformed(b"ctorch._utils\n_rebuild_parameter\n(NtR", "calls something with None");
    refused(b"}}b", "sets the state of a dict");
    refused(b"]}b", "sets the state of a list");
    refused(b"ccollections\nOrderedDict\n)RNb", "sets the state of a dict to None");
    assert!(parse(&pickle(b"ccollections\nOrderedDict\n)R}b")).is_ok());
    malformed(b"NQ", "no storage");
    malformed(b")Q", "fewer than five");
}

#[test]
fn lengths_are_checked_before_memory_is_taken() {
    malformed(b"\x8b\xff\xff\xff\x7f", "wants 2147483647 bytes");
    malformed(b"\x8b\xff\xff\xff\xff", "wants 4294967295 bytes");
    malformed(b"X\xff\xff\xff\xffabc", "wants 4294967295 bytes where");
    malformed(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc", "wants 18446744073709551615 bytes");
    malformed(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc", "wants 9223372036854775807 bytes");
    malformed(b"\x8e\0\0\0\0\0\0\0\x40", "wants 4611686018427387904 bytes");
    malformed(b"\x95\xff\xff\xff\xff\0\0\0\0", "a frame of 4294967295 bytes");
    malformed(&[b"c".to_vec(), vec![b'a'; 600], b"\n".to_vec()].concat(), "over 512 bytes");
    malformed(&[b"I".to_vec(), vec![b'1'; 600], b"\n".to_vec()].concat(), "over 512 bytes");
    malformed(b"I99999999999999999999\n", "where a number should be");
    malformed(b"\x80\x09", "protocol 9");
    malformed(b"\xff", "unknown pickle operation 0xff");
}

#[test]
fn the_memo_grows_one_by_one() {
    refused(b"Nr\xff\xff\xff\xff", "stores entry 4294967295 of a memo of 0");
    refused(b"Nq\0Nq\x02", "stores entry 2 of a memo of 1");
    refused(b"Np4294967296\n", "stores entry 4294967296");
    malformed(b"Np-1\n", "where a number should be");
    malformed(b"Nq\0h\x01", "recalls entry 1 of a memo of 1");
    malformed(b"q\0", "stack is empty");
    assert!(parse(&pickle(b"Nq\0q\0h\0")).is_ok());
}

#[test]
fn depth_is_bounded() {
    let million = 1_000_000;
    refused(&vec![b'('; million], "nested over 500 deep");
    refused(&[b")".to_vec(), vec![0x85; million]].concat(), "nested over 500 deep");
    refused(&[vec![b']'; million], vec![b'a'; million - 1]].concat(), "nested over 500 deep");
    let inner = [vec![b'}'; 600], b"NNs".to_vec()].concat();
    assert!(parse(&pickle(&inner)).is_ok());
    let deep: Vec<u8> =
        (0..600).flat_map(|_| b"}N".to_vec()).chain([b'N']).chain(vec![b's'; 600]).collect();
    refused(&deep, "nested over 500 deep");
}

#[test]
fn containers_may_contain_themselves() {
    // A list, a dict and a tuple, each inside itself.
    for body in [&b"]q\0h\0a"[..], b"}q\0Nh\0s", b"]q\0h\0\x85a", b"}q\0h\0h\0s"] {
        let bytes = pickle(body);
        let parsed = parse(&bytes).unwrap();
        assert!(parsed.values.len() <= 3, "{parsed:?}");
        let _ = super::super::state_dict::collect(&parsed, &[], bytes.len());
    }
    let loops = [text("model"), b"h\0s".to_vec()].concat();
    let bytes = pickle(&[b"}q\0".to_vec(), loops].concat());
    let fault = super::super::state_dict::collect(&parse(&bytes).unwrap(), &[], bytes.len());
    assert!(fault.unwrap_err().reason.contains("no dict of tensors"));
}

#[test]
fn numbers_of_values_are_bounded() {
    refused(&vec![b'N'; MAX_VALUES + 1], "more than 2097152 values");
    refused(&[b"N".to_vec(), vec![b'2'; MAX_VALUES + 1]].concat(), "stack grows over");
    refused(&[b"N".to_vec(), vec![0x94; MAX_VALUES + 1]].concat(), "memo");
    // The same list of pairs, copied into one dict after the other.
    let start = b"ccollections\nOrderedDict\nq\0](".to_vec();
    let body = [start, b"NN\x86".repeat(1000), b"eq\x01".to_vec(), b"h\0h\x01\x85R0".repeat(3000)];
    refused(&body.concat(), "more than 2097152 values");
}

#[test]
fn stacks_are_not_read_below_their_marks() {
    for body in [
        &b"0"[..],
        b"N(0",
        b"N(a",
        b"t",
        b"u",
        b"(u",
        b"R",
        b"NR",
        b"s",
        b"]s",
        b"N(a",
        b"\x87",
        b"2",
    ] {
        malformed(body, "");
    }
    malformed(b"}(Nu", "a key of a dict without a value");
    malformed(b"N(NNu", "sets an item of None");
    malformed(b"NNa", "appends to None");
    assert!(parse(b"").is_err() && parse(b".").is_err() && parse(b"\x80\x02").is_err());
}

#[test]
fn integers() {
    let read = |body: &[u8]| {
        let bytes = pickle(body);
        let parsed = parse(&bytes).unwrap();
        match *parsed.value(parsed.root) {
            Value::Int(value) => Some(value),
            _ => None,
        }
    };
    assert_eq!(read(b"K\xff"), Some(255));
    assert_eq!(read(b"M\xff\xff"), Some(65535));
    assert_eq!(read(b"J\xff\xff\xff\xff"), Some(-1));
    assert_eq!(read(b"\x8a\0"), Some(0));
    assert_eq!(read(b"\x8a\x01\xff"), Some(-1));
    assert_eq!(read(b"\x8a\x06\0\0\0\0\0\xff"), Some(-(1 << 40)));
    assert_eq!(read(b"\x8a\x09\0\0\0\0\0\0\0\0\x01"), None);
    assert_eq!(read(b"I12\n"), Some(12));
    assert_eq!(read(b"L-3L\n"), Some(-3));
    assert_eq!(read(b"I01\n"), None);
}
