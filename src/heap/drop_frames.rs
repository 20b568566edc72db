//! The frames that viewers of a heap profile hide.

/// Regular expression for the functions between the program and the tables: the language's
/// allocation entry points, the growth functions of containers, and marple's own functions. A
/// viewer that applies it shows the function of the program that requested the memory as the
/// innermost; the file itself keeps every frame.
///
/// The expression matches whole names. A dropped frame also drops everything it calls, so functions
/// that run the program's closures or iterators are not listed (`or_insert_with`, `from_iter`,
/// `extend`). Listed functions call back into the program only to clone, hash, compare or format a
/// value. In a name of several functions (` (or ...)`) those of the program come first, so the
/// names after a listed function are of the same kind. Go drops the text in brackets and leaves the
/// space.
pub const DROP_FRAMES: &str = concat!(
    r"((__rustc.*::)?__(rust|rg)_(alloc|alloc_zeroed|realloc)",
    r"|<.* as core::alloc::global::GlobalAlloc>::.*",
    r"|<?marple::heap::alloc::Allocator.*",
    r"|<?alloc::(alloc|raw_vec)::.*",
    r"|alloc::boxed::(box_new.*|Box<.*>::(new(_in|_uninit|_uninit_in)?|pin|(try_)?clone_from_ref_in))",
    r"|alloc::boxed::convert::<impl core::convert::From<.*>::from",
    r"|<?alloc::(vec::Vec<.*>|string::String)>?",
    r"::(with_capacity|with_capacity_in|reserve|reserve_exact|push|push_mut|push_str|grow_one",
    r"|append|append_elements|extend_from_slice|extend_from_within|extend_with|insert|insert_mut|insert_str",
    r"|into_boxed_slice|into_boxed_str|resize|shrink_to|shrink_to_fit|split_off)",
    r"|<alloc::(vec::Vec<.*>|string::String) as core::(clone::Clone>::clone|convert::From<.*>::from",
    r"|fmt::Write>::write_(str|char))",
    r"|(alloc::vec|<.* as alloc::vec::spec_from_elem::SpecFromElem>)::from_elem",
    r"|<alloc::vec::Vec<.*> as alloc::vec::spec_extend::SpecExtend<&T,core::slice::iter::Iter<T>>>",
    r"::spec_extend",
    r"|<?(.* as )?alloc::(slice|str)::(<impl .*>|join_generic_copy)(::.*)?",
    r"|<.* as alloc::string::(SpecToString|ToString)>::(spec_)?to_string",
    r"|alloc::fmt::format(::.*)?",
    r"|<?alloc::(rc::Rc|sync::Arc)<.*>::(new|new_in|pin|allocate_for_.*|copy_from_slice|from_box(_in)?)",
    r"|<alloc::(rc::Rc|sync::Arc)<.*> as core::convert::From<.*>::from",
    r"|alloc::collections::btree::(node::.*|map::entry::VacantEntry<.*>::insert(_entry)?",
    r"|map::BTreeMap<.*>::insert|set::BTreeSet<.*>::(insert|replace))",
    r"|alloc::collections::(binary_heap::BinaryHeap|linked_list::LinkedList|vec_deque::VecDeque)<.*>",
    r"::(with_capacity|with_capacity_in|reserve|reserve_exact|grow|insert|insert_mut|push",
    r"|push_(back|front)(_mut|_node)?|resize)",
    r"|(hashbrown|std::collections::hash)::(map::HashMap|set::HashSet)<.*>",
    r"::(with_capacity.*|reserve|insert|entry|replace|shrink_to_fit)",
    r"|hashbrown::(rustc_entry::.*::rustc_entry|raw::RawTable(Inner|<.*>)::.*)",
    r")( .*)?",
);
