use super::machine::NODES_MAX;
use super::*;

fn read(bytes: &[u8]) -> Pickle {
    Pickle::read(bytes).unwrap()
}

fn error(bytes: &[u8]) -> String {
    format!("{:#}", Pickle::read(bytes).unwrap_err())
}

#[test]
fn plain_values_are_what_python_makes_of_them() {
    // pickle.dumps({"a": [1, -2, 70000, 2**40, 1.5], "b": (True, None, "ü")}, 2), and protocol 0's text numbers.
    let pickle = read(b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffJp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01G?\xf8\x00\x00\x00\x00\x00\x00eX\x01\x00\x00\x00bq\x03\x88NX\x02\x00\x00\x00\xc3\xbcq\x04\x87q\x05u.");
    let entries: Vec<(&str, At)> = pickle.entries(pickle.root()).collect();
    let values = |at: usize| match pickle.node(entries[at].1) {
        Node::List(items) => items.iter().map(|item| pickle.node(*item).clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!((entries[0].0, entries[1].0), ("a", "b"));
    let ints = [1, -2, 70_000, 1 << 40].map(Node::Int);
    assert_eq!(values(0)[..4], ints);
    assert_eq!(values(0)[4], Node::Float(1.5));
    assert_eq!(values(1), [Node::Bool(true), Node::None, Node::Text("ü".to_owned())]);
    assert_eq!(*read(b"I-17\n.").node(0), Node::Int(-17));
    assert_eq!(*read(b"L17L\n.").node(0), Node::Int(17));
    assert_eq!(*read(b"I01\n.").node(0), Node::Bool(true));
}

#[test]
fn a_call_of_anything_else_is_kept_as_a_name_and_never_made() {
    let marker = std::env::temp_dir().join(format!("causeway-pickle-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let calls = [
        format!("cposix\nsystem\n(S'{command}'\ntR."),
        format!("(S'{command}'\nios\nsystem\n."),
        format!("c__builtin__\neval\n(S'__import__(\"os\").system(\"{command}\")'\ntR."),
    ];
    for call in calls {
        let pickle = read(call.as_bytes());
        let Node::Object { class, arguments, .. } = pickle.node(pickle.root()) else { panic!("{call}") };
        assert!(["posix.system", "os.system", "__builtin__.eval"].contains(&class.as_str()), "{class}");
        let Node::List(arguments) = pickle.node(*arguments) else { panic!("{call}") };
        assert!(pickle.text(arguments[0]).unwrap().contains("touch"));
    }
    // By the stack instead of by name, and as the constructor of a class with a state.
    let pickle = read(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.");
    assert!(matches!(pickle.node(pickle.root()), Node::Object { class, .. } if class == "os.system"));
    let pickle = read(b"\x80\x02cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrG?\x50bM\xd2\xf1\xa9\xfcsb.");
    let Node::Object { class, state: Some(state), .. } = pickle.node(pickle.root()) else { panic!() };
    assert_eq!(class, "argparse.Namespace");
    assert_eq!(
        pickle.entries(*state).next().map(|(name, at)| (name, pickle.node(at))),
        Some(("lr", &Node::Float(1e-3)))
    );
    assert!(!marker.exists(), "nothing ran");
}

#[test]
fn a_pickle_that_doubles_itself_costs_no_more_than_its_bytes() {
    // l = [l', l'] a hundred times over: 2¹⁰⁰ entries if it were written out.
    let mut bytes = b"\x80\x02]q\x00".to_vec();
    for depth in 0..100u8 {
        bytes.extend([b'0', b']', b'(', b'h', depth, b'h', depth, b'e', b'q', depth + 1]);
    }
    bytes.push(b'.');
    let pickle = read(&bytes);
    assert_eq!(pickle.nodes.len(), 101);
    // A list within itself.
    let pickle = read(b"]q\x00h\x00a.");
    assert_eq!(*pickle.node(pickle.root()), Node::List(vec![pickle.root()]));
    // One list copied into dictionaries without end.
    let mut bytes = b"ccollections\nOrderedDict\nq\x00](".to_vec();
    bytes.extend(b"NN\x86".repeat(1 << 17));
    bytes.extend(b"e\x85q\x01".iter());
    bytes.extend(b"h\x00h\x01R0".repeat(1 << 10));
    assert!(error(&bytes).contains("more than 1048576 values"), "{}", error(&bytes));
    assert!(error(&b"N".repeat(NODES_MAX + 1)).contains("more than"));
}

#[test]
fn a_pickle_that_makes_no_sense_is_an_error_with_its_place() {
    for (bytes, part) in [
        (&b""[..], "at byte 0 of the pickle: the pickle is cut short"),
        (b"\x80\x02X\xff\x00\x00\x00ab", "cut short"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "cut short"),
        (b"cos", "cut short"),
        (b".", "empty stack"),
        (b"(R.", "empty stack"),
        (b"te.", "closes"),
        (b"h\x07.", "recalls what it did not remember"),
        (b"NNa.", "no list"),
        (b"N(K\x01u.", "has no value"),
        (b"NQ.", "persistent id that is not torch's"),
        (b"\x82\x01.", "opcode 0x82"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))t R.", "opcode 0x20"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "a tensor without a storage"),
    ] {
        let found = error(bytes);
        assert!(found.contains(part), "{:?}: {found}", String::from_utf8_lossy(bytes));
    }
}
