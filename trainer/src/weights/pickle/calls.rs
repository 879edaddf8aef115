//! What a checkpoint's calls would have made. The few functions of torch's that put tensors together are known here by
//! name; every other call is an opaque object.

use super::machine::{Machine, NAME_MAX};
use super::{At, Node, Storage, View};
use anyhow::{Result, bail, ensure};

/// Most dimensions of a tensor.
const RANK_MAX: usize = 8;

impl Machine<'_> {
    /// What a call would have made.
    pub(super) fn call(&mut self, callee: At, arguments: At) -> Result<()> {
        let class = match &self.nodes[callee] {
            Node::Class(name) => name.clone(),
            _ => "call of what is no class".to_owned(),
        };
        let given = match &self.nodes[arguments] {
            Node::List(items) => items.as_slice(),
            _ => &[],
        };
        match (class.as_str(), given) {
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                [storage, offset, size, stride, ..],
            ) => {
                let view = self.view(*storage, *offset, *size, *stride)?;
                self.push(Node::Tensor(view))
            }
            // A parameter is its tensor.
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [tensor, ..],
            ) => {
                let tensor = *tensor;
                self.put(tensor);
                Ok(())
            }
            // A tensor with attributes: the function that would make it, its class, that function's arguments, state.
            ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) if matches!(&self.nodes[*function], Node::Class(name) if name.starts_with("torch._utils._rebuild_")) => {
                self.call(*function, *arguments)
            }
            // TorchScript's marks of a list's type.
            ("torch.jit._pickle.restore_type_tag", [value, ..])
            | (
                "torch.jit._pickle.build_intlist"
                | "torch.jit._pickle.build_doublelist"
                | "torch.jit._pickle.build_boollist"
                | "torch.jit._pickle.build_tensorlist",
                [value, ..],
            ) => {
                let value = *value;
                self.put(value);
                Ok(())
            }
            ("collections.OrderedDict", []) | ("collections.defaultdict", _) => {
                self.push(Node::Dict(Vec::new()))
            }
            ("collections.OrderedDict", [items, ..]) => {
                let items = match &self.nodes[*items] {
                    Node::List(items) => items.clone(),
                    _ => Vec::new(),
                };
                self.copied += items.len();
                let pair = |at: &At| match &self.nodes[*at] {
                    Node::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
                    _ => bail!("an OrderedDict is made of what are no pairs"),
                };
                let pairs = items.iter().map(pair).collect::<Result<_>>()?;
                self.push(Node::Dict(pairs))
            }
            _ => self.push(Node::Object { class, arguments, state: None }),
        }
    }

    fn view(&self, storage: At, offset: At, size: At, stride: At) -> Result<View> {
        let int = |at: At| match self.nodes[at] {
            Node::Int(int) if int >= 0 => Ok(int),
            _ => bail!("a tensor's shape holds what is no length"),
        };
        let ints = |at: At| match &self.nodes[at] {
            Node::List(items) if items.len() <= RANK_MAX => items.iter().map(|item| int(*item)).collect(),
            _ => bail!("a tensor's shape is no list of at most {RANK_MAX} lengths"),
        };
        let Node::Storage(storage) = &self.nodes[storage] else { bail!("a tensor without a storage") };
        let view =
            View { storage: storage.clone(), offset: int(offset)?, size: ints(size)?, stride: ints(stride)? };
        ensure!(
            view.size.len() == view.stride.len(),
            "a tensor has {:?} and strides {:?}",
            view.size,
            view.stride
        );
        Ok(view)
    }

    /// Attributes: of an object its state; those of dictionaries and tensors, such as torch's `_metadata`, mean nothing
    /// for weights.
    pub(super) fn build(&mut self) -> Result<()> {
        let given = self.pop()?;
        let object = self.top()?;
        if let Node::Object { state, .. } = &mut self.nodes[object] {
            *state = Some(given);
        }
        Ok(())
    }

    /// torch's only persistent id: ('storage', class, key, device, number of values).
    pub(super) fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let parts = match &self.nodes[id] {
            Node::List(parts) => parts.as_slice(),
            _ => &[],
        };
        let nodes: Vec<&Node> = parts.iter().map(|at| &self.nodes[*at]).collect();
        let [Node::Text(kind), Node::Class(class), Node::Text(key), _, Node::Int(count), ..] =
            nodes.as_slice()
        else {
            bail!("a persistent id that is not torch's");
        };
        ensure!(
            kind == "storage" && key.len() <= NAME_MAX && *count >= 0,
            "a persistent id that is not torch's"
        );
        let storage = Storage { class: class.clone(), key: key.clone(), count: *count };
        self.push(Node::Storage(storage))
    }
}
