import CLayouts

/// Which tensors of a folder something reads. One that nothing reads would be lost without a word.
struct UsedTensors {
  private let checkpoint: Checkpoint
  private let used: UnsafeMutablePointer<Bool>  // [count]

  init(_ checkpoint: Checkpoint, _ allocator: Allocator) throws(Fault) {
    self.checkpoint = checkpoint
    used = try allocator.allocate(Bool.self, count: checkpoint.count)
    used.initialize(repeating: false, count: checkpoint.count)
  }

  func free(_ allocator: Allocator) { allocator.deallocate(used) }

  func note(_ index: Int) { used[index] = true }

  var firstUnused: StoredTensor? {
    for index in 0..<checkpoint.count where !used[index] { return checkpoint[index] }
    return nil
  }

  /// All of a layer's MoE block; returns their bytes.
  func note(beginning: UnsafePointer<CChar>, _ layout: Layout) -> Int {
    var (bytes, index) = (0, checkpoint.all.firstIndex(notBefore: beginning))
    while index < checkpoint.count, let own = text(checkpoint[index].name, after: beginning) {
      if layout.isOwn(own) {
        used[index] = true
        bytes += checkpoint[index].bytes
      }
      index += 1
    }
    return bytes
  }

  /// But for those that the family's models do not read.
  func requireAll(_ tensors: FamilyTensors) throws(Fault) {
    try checkpoint.requireAllNamed()
    let (family, layers) = (tensors.family, tensors.model.configuration.layers)
    var left = 0
    for index in 0..<checkpoint.count where !used[index] {
      if try isLeft(checkpoint[index], family, layers) { used[index] = true } else { left += 1 }
    }
    if left == 0 { return }
    try withText { (text: inout TextBuffer) in
      var listed = 0
      for index in 0..<checkpoint.count where !used[index] && listed < 3 {
        if listed > 0 { text.append(", ") }
        text.append(checkpoint[index].name)
        listed += 1
      }
      if left > listed { text.append(", ...") }
    } body: { (names) throws(Fault) in
      throw .invalid(
        """
        \(left) tensors are no part of a model of model_type \(family.name) with this config.json, which would compute without \
        them: \(names)
        """)
    }
  }

  private func isLeft(_ tensor: StoredTensor, _ family: Family, _ layers: Int) throws(Fault) -> Bool {
    if family.leaves(tensor.name) || family.isFurtherLayer(tensor.name, layers: layers) { return true }
    return try checkpoint.isTied(tensor, family)
  }
}

extension Family {
  /// Whether a tensor is of a layer behind the last one, where the family's files may have such.
  func isFurtherLayer(_ name: UnsafePointer<CChar>, layers: Int) -> Bool {
    table.pointee.further_layers == 1 && (layer(of: name) ?? -1) >= layers
  }
}

extension Checkpoint {
  /// Whether the index names all that its files have.
  func requireAllNamed() throws(Fault) {
    for file in 0..<fileCount {
      for tensor in tensors(ofFile: file) where !lists(tensor.name) {
        throw .invalid(
          "\(tensor.name): a file of the index has it, the index does not name it: download the folder again")
      }
    }
  }

  /// Whether a tensor is one that the model shares with another, whose bytes it must have.
  func isTied(_ tensor: StoredTensor, _ family: Family) throws(Fault) -> Bool {
    for index in 0..<family.ruleCount where family.rule(index).mayBeTied {
      let isIt = withText {
        family.rule(index).appendName(family, layer: 0, to: &$0)
      } body: {
        compareText($0, tensor.name) == 0
      }
      guard isIt, let embedding = embedding(of: family) else { continue }
      if try isSame(tensor, embedding) { return true }
      throw .invalid(
        "\(tensor.name) is not \(embedding.name), though tie_word_embeddings is true: set it to false in config.json")
    }
    return false
  }

  private func embedding(of family: Family) -> StoredTensor? {
    for index in 0..<family.ruleCount where compareText(family.rule(index).parameter, cText("embed.weight")) == 0 {
      return withText {
        family.rule(index).appendName(family, layer: 0, to: &$0)
      } body: {
        tensor($0)
      }
    }
    return nil
  }

  /// Read some bytes at a time.
  private func isSame(_ a: StoredTensor, _ b: StoredTensor) throws(Fault) -> Bool {
    if a.type != b.type || a.shape != b.shape || a.quantised != nil || b.quantised != nil { return false }
    let stretch = 1024
    var (same, fault) = (true, Fault?.none)
    withUnsafeTemporaryAllocation(byteCount: stretch, alignment: 8) { memory in
      let (one, other) = (memory.baseAddress!, memory.baseAddress! + stretch / 2)
      for start in stride(from: 0, to: a.bytes, by: stretch / 2) {
        let count = min(stretch / 2, a.bytes - start)
        func get(_ tensor: StoredTensor, _ place: UnsafeMutableRawPointer) {
          let error = input(tensor.file).read(tensor.offset + start, count, to: place)
          if error != 0 { fault = .io("reading a tensor", input(tensor.file).descriptor, error) }
        }
        get(a, one)
        get(b, other)
        for i in 0..<count
        where one.load(fromByteOffset: i, as: UInt8.self) != other.load(fromByteOffset: i, as: UInt8.self) {
          same = false
        }
        if !same || fault != nil { return }
      }
    }
    if let fault { throw fault }
    return same
  }
}
