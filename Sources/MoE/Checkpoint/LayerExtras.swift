import CShims

// What a checkpoint has for a layer and the layer has no use for would be lost without a word: it is refused, and the message
// says what would use it.

extension Loading {
  func requireNothingElse() throws(Fault) {
    try tensors.withBeginning { (beginning) throws(Fault) in
      try checkpoint.all.forEachName(beginning: beginning) { (name, own) throws(Fault) in
        if tensors.layout.isOwn(own) { try requireUsed(name, own) }
      }
      for file in 0..<checkpoint.fileCount {
        try checkpoint.tensors(ofFile: file).forEachName(beginning: beginning) { (name, own) throws(Fault) in
          if tensors.layout.isOwn(own) && !checkpoint.lists(name) {
            throw .invalid("\(name): a file of the index has it, the index does not name it; open that file by itself")
          }
        }
      }
      // Of an adapter that was saved beside the weights [PEFT]: its names begin with the whole model's name.
      try checkpoint.all.forEachName(beginning: cText("base_model.")) { (name, own) throws(Fault) in
        if hasPart(own, beginning) { throw adapter(name) }
      }
    }
  }

  private func requireUsed(_ name: UnsafePointer<CChar>, _ own: UnsafePointer<CChar>) throws(Fault) {
    for index in 0..<tensors.ruleCount {
      let rule = tensors.rule(index)
      guard let expert = rule.expert(of: own) else { continue }
      switch rule.listing {
      case .refused: throw .invalid("\(name) is not supported: \(rule.first)")
      case .table: return try requireHashTable(name)
      default: break
      }
      guard let entry = tensors.entry(rule) else { throw surplus(name, rule.first) }
      if expert < entry.count || isIdentity(expert) { return }
      throw isOfFolder
        ? .invalid(
          "\(name): the files have more experts than config.json's \(entry.count): correct that, or download the folder again"
        )
        : .invalid(
          "\(name): the checkpoint has more experts than the layer's \(entry.count): make the layer with n_experts for them"
        )
    }
    throw unknown(name, own)
  }

  /// Of a tensor of a parameter that the layer does not have.
  private func surplus(_ name: UnsafePointer<CChar>, _ parameter: UnsafePointer<CChar>) -> Fault {
    isOfFolder
      ? .invalid(
        """
        \(name): the files have it, but by config.json the layer has no \(parameter): correct that, or take the tensor out of the \
        files where the model is meant without it
        """)
      : .invalid(
        "\(name): the checkpoint has it, the layer has no \(parameter): make the layer \(LayerOption.with(parameter))")
  }

  /// Files that transformers wrote hold some numbers for experts that give back what they get; nothing reads them.
  private func isIdentity(_ expert: Int) -> Bool {
    let c = tensors.layer.configuration
    return tensors.layout.holdsIdentities && c.groupsAreListed && expert < c.experts
  }

  private func unknown(_ name: UnsafePointer<CChar>, _ own: UnsafePointer<CChar>) -> Fault {
    if hasPart(own, cText("lora_")) { return adapter(name) }
    if tensors.layout.isLibmoe && LayerOption.isParameter(own) { return surplus(name, own) }
    if isQuantised(own) {
      return .invalid(
        "\(name): quantised weights are not supported; convert the checkpoint to bfloat16 or float32 first")
    }
    if let likely = checkpoint.likelyLayout(number: number, own: tensors.layout), likely.layout != tensors.layout {
      return .invalid(
        "\(name): \(tensors.layout.name) does not know it; the checkpoint looks like \(likely.layout.name)")
    }
    return .invalid(
      """
      \(name): \(tensors.layout.name) does not know it, and the layer would compute without it; where that is meant, \
      load a file without this tensor
      """)
  }

  private func adapter(_ name: UnsafePointer<CChar>) -> Fault {
    .invalid("\(name): adapters are not supported; merge them into the weights first")
  }

  /// Names that go with weights in other formats: FP8, GPTQ, AWQ, bitsandbytes, compressed tensors.
  private func isQuantised(_ own: UnsafePointer<CChar>) -> Bool {
    func ends(_ part: StaticString) -> Bool { hasEnd(own, cText(part)) }
    return ends("_scale_inv") || ends("_scale") || ends("_scales") || ends("_blocks") || ends("_packed")
      || ends("_zero_point") || ends(".scale") || ends(".scales") || ends(".qweight") || ends(".qzeros")
      || ends(".g_idx") || ends(".SCB") || hasPart(own, cText(".weight.")) || ends("weight_shape")
  }

  /// The table that chooses [V,K], I64 or I32, must be the one that the layer was made with.
  private func requireHashTable(_ name: UnsafePointer<CChar>) throws(Fault) {
    let (c, stored) = (tensors.layer.configuration, checkpoint.tensor(name)!)
    guard c.router.readsTokenIds, let table = c.hashTable else {
      throw .invalid(
        "\(name): the checkpoint has it, the layer does not choose by token id: make the layer with router = HASH and it"
      )
    }
    var isSame = stored.shape == StoredShape(c.vocabulary, c.topK) && (stored.type == .i64 || stored.type == .i32)
    if isSame {
      try checkpoint.forEachElement(stored) { (index, element) in
        let expert = stored.type == .i64 ? Int(element.load(as: Int64.self)) : Int(element.load(as: Int32.self))
        isSame = isSame && expert == Int(table[index])
      }
    }
    if !isSame { throw .invalid("\(name) is another table than the layer's hash_table: make the layer with it") }
  }

  // MARK: what is missing

  func missing(_ rule: TensorRule, _ name: UnsafePointer<CChar>) -> Fault {
    if isOfFolder { return checkpoint.missingOfConfig(name) }
    if let likely = betterLayout() {
      return withText { (text: inout TextBuffer) in
        text.append(likely.name, count: likely.length)
      } body: { prefix in
        .invalid(
          """
          \(name): the checkpoint has no such tensor; it looks like \(likely.layout.name) with the prefix "\(prefix)"
          """)
      }
    }
    if rule.isOptional {
      return .invalid(
        "\(name): the checkpoint has no such tensor: make the layer \(LayerOption.without(rule.first))")
    }
    return checkpoint.missing(name)
  }

  func misshapen(_ name: UnsafePointer<CChar>, dimension: Int, stored: Int, wanted: Int) -> Fault {
    if isOfFolder {
      return .invalid("\(name): dimension \(dimension) is \(stored) in the file, \(wanted) by config.json")
    }
    if let likely = betterLayout(), likely.layout != tensors.layout {
      return .invalid(
        """
        \(name): dimension \(dimension) is \(stored) in the checkpoint, \(wanted) in the layer; it looks like \
        \(likely.layout.name)
        """)
    }
    return .invalid("\(name): dimension \(dimension) is \(stored) in the checkpoint, \(wanted) in the layer")
  }

  /// Where the checkpoint looks like another layout than was asked for, or has another prefix.
  private func betterLayout() -> LikelyLayout? {
    guard
      let likely = checkpoint.likelyLayout(number: number, own: tensors.layout)
        ?? checkpoint.likelyLayout(number: nil, own: tensors.layout)
    else { return nil }
    let isAsked = withText {
      tensors.begin(&$0)
    } body: {
      textLength($0) == likely.length && text(likely.name, after: $0) != nil
    }
    return isAsked && likely.layout == tensors.layout ? nil : likely
  }

  private var number: Int? {
    if case .number(let number) = tensors.place { return number }
    return nil
  }
}

extension UnsafeBufferPointer<StoredTensor> {
  /// Hands over the names that begin so, and what follows that; they are sorted.
  func forEachName(
    beginning: UnsafePointer<CChar>, _ body: (UnsafePointer<CChar>, UnsafePointer<CChar>) throws(Fault) -> Void
  ) throws(Fault) {
    var index = firstIndex(notBefore: beginning)
    while index < count, let own = text(self[index].name, after: beginning) {
      try body(self[index].name, own)
      index += 1
    }
  }

  func firstIndex(notBefore name: UnsafePointer<CChar>) -> Int {
    var (low, high) = (0, count)
    while low < high {
      let middle = low + (high - low) / 2
      if compareText(self[middle].name, name) < 0 { low = middle + 1 } else { high = middle }
    }
    return low
  }
}

extension Checkpoint {
  /// Whether a tensor of a layer in that layout is called so and something.
  func hasName(beginning: UnsafePointer<CChar>, of layout: Layout) -> Bool {
    var index = all.firstIndex(notBefore: beginning)
    while index < count, let own = text(all[index].name, after: beginning) {
      if layout.isOwn(own) { return true }
      index += 1
    }
    return false
  }
}
