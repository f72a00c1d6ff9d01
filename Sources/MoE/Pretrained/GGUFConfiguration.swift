import CLayouts

/// What a GGUF file's keys say about its model, in the words of a config.json.
struct GGUFConfiguration {
  let header: GGUFHeader
  let checkpoint: Checkpoint
  let architecture: Architecture
  /// Of its model, those that predict further tokens not among them.
  private let layers: Int
  private var json: TextBuffer
  private let capacity: Int
  private var isFirst = true

  /// Of a file's text: room for `capacity` bytes.
  static func capacity(_ checkpoint: Checkpoint) -> Int {
    min(JSONTree.largest, 1 << 14 + 64 * checkpoint.count + 1 << 17)
  }

  init(
    _ header: GGUFHeader, _ checkpoint: Checkpoint, to memory: UnsafeMutablePointer<CChar>, capacity: Int
  ) throws(Fault) {
    (self.header, self.checkpoint) = (header, checkpoint)
    if let kind = header.value("general.type"), let text = kind.text, !(text == "model") {
      throw .invalid("general.type = \(text): this GGUF file holds no model: \(header.path)")
    }
    guard let name = header.value("general.architecture")?.text else {
      throw .invalid("general.architecture: the GGUF file does not say which model this is: \(header.path)")
    }
    guard let architecture = Architecture(named: name) else {
      throw .invalid(
        "general.architecture = \(name) is not supported: its keys and tensors are unknown; docs/models.md lists those that are known: \(header.path)"
      )
    }
    self.architecture = architecture
    (json, self.capacity) = (TextBuffer(memory, capacity: capacity), capacity)
    layers = try Self.layers(header, architecture, checkpoint)
  }

  private static func layers(
    _ header: GGUFHeader, _ architecture: Architecture, _ checkpoint: Checkpoint
  ) throws(Fault) -> Int {
    let all = header.whole(architecture, "block_count") ?? 0
    let further = header.whole(architecture, "nextn_predict_layers") ?? 0
    if all < 1 || all > checkpoint.count || further < 0 || further >= all {
      throw .invalid(
        "\(architecture.name).block_count = \(all), of which \(further) predict further tokens, in a file of \(checkpoint.count) tensors: \(header.path)"
      )
    }
    return all - further
  }

  // MARK: the whole

  /// Writes it, and returns its length.
  mutating func write() throws(Fault) -> Int {
    try requireKnown()
    json.append("{")
    key("model_type")
    text(try modelType())
    key("num_hidden_layers")
    json.append(layers)
    key("vocab_size")
    json.append(try vocabulary())
    flag("tie_word_embeddings", checkpoint.find(cText("output.weight")) == nil)
    key("dtype")
    text(cText("bfloat16"))
    for index in 0..<architecture.keyCount { try write(architecture.key(index)) }
    try writeHeads()
    try writeTurn()
    writeTokens()
    json.append("}\n")
    if json.length >= capacity - 1 {
      throw .invalid("what the keys of this GGUF file say is longer than \(capacity) bytes: \(header.path)")
    }
    return json.length
  }

  private func modelType() throws(Fault) -> UnsafePointer<CChar> {
    var found: UnsafePointer<CChar>?
    architecture.forEachVariant { variant in
      guard let type = variant.model_type else { return true }
      if let name = variant.name {
        let value = compareText(name, cText("expert_gating_func")) == 0 ? gate : value(name)?.single?.number ?? 0
        if value == 0 || (variant.value != 0 && value != Double(variant.value)) { return false }
      }
      found = UnsafePointer(type)
      return true
    }
    guard let found else { throw .invalid("\(architecture.name): no model_type is known for it: \(header.path)") }
    return found
  }

  /// How experts are chosen: by softmax is 1, by sigmoid 2; older files say it by having a bias for the choice alone.
  var gate: Double {
    if let own = value("expert_gating_func")?.single?.number { return own }
    let hasBias = withText {
      $0.append("blk.")
      $0.append(layers - 1)
      $0.append(".exp_probs_b.bias")
    } body: {
      checkpoint.find($0) != nil
    }
    return hasBias ? 2 : 1
  }

  private func vocabulary() throws(Fault) -> Int {
    guard let tensor = checkpoint.tensor(cText("token_embd.weight")), tensor.shape.rank == 2 else {
      throw .invalid("token_embd.weight: the GGUF file has no such matrix: \(header.path)")
    }
    return tensor.shape[0]
  }

  /// Keys of the architecture that nobody knows may change the model's numbers.
  private func requireKnown() throws(Fault) {
    try header.forEachName { (name) throws(Fault) in
      try name.withText { (name) throws(Fault) in
        guard let rest = MoE.text(name, after: architecture.name), let own = MoE.text(rest, after: cText(".")) else {
          return
        }
        if !architecture.knows(own) {
          throw .invalid(
            "\(name): this key of the GGUF file is unknown, and may change the model's numbers: \(header.path)")
        }
      }
    }
  }

  // MARK: keys of the table

  func value(_ name: UnsafePointer<CChar>) -> GGUFValue? { header.value(architecture, name) }
  func value(_ name: StaticString) -> GGUFValue? { value(cText(name)) }

  private mutating func write(_ row: moei_metadata) throws(Fault) {
    switch Int(row.kind) {
    case MOEI_META_IGNORED, MOEI_META_RULE: return
    case MOEI_META_IS:
      if let found = value(row.name!) { try require(found, row) }
    case MOEI_META_HAS:
      if checkpoint.find(row.name!) == nil { return otherwise(row) }
      flag(row.key!, true)
    case MOEI_META_ALWAYS: otherwise(row)
    case MOEI_META_DENSE, MOEI_META_SPARSE: list(row.key!, withExperts: Int(row.kind) == MOEI_META_SPARSE)
    case MOEI_META_LAST: lastWithExperts(row.key!)
    case MOEI_META_BELOW:
      flag(row.key!, try number(row.name!) ?? 0 < decimal(JSONText(row.otherwise!)))
    case MOEI_META_FLAG:
      guard let found = value(row.name!) else { return otherwise(row) }
      guard let isTrue = found.flag else { throw wrong(row.name!, "neither true nor false") }
      flag(row.key!, isTrue)
    default:
      guard let found = try numbers(row.name!) else {
        if Int(row.kind) == MOEI_META_NEEDED { throw wrong(row.name!, "missing") }
        return otherwise(row)
      }
      key(row.key!)
      number(found)
    }
  }

  private mutating func otherwise(_ row: moei_metadata) {
    guard let words = row.otherwise else { return }
    key(row.key!)
    json.append(UnsafePointer<CChar>(words))
  }

  /// Of a number for all layers, or one for each that is the same for all.
  func numbers(_ name: UnsafePointer<CChar>) throws(Fault) -> GGUFValue? {
    guard let found = value(name) else { return nil }
    guard let single = found.single, let number = single.number, number.isFinite else {
      throw wrong(name, "not one finite number, or not the same for all layers")
    }
    return single
  }

  func number(_ name: UnsafePointer<CChar>) throws(Fault) -> Double? { try numbers(name)?.number }
  func number(_ name: StaticString) throws(Fault) -> Double? { try number(cText(name)) }

  /// Of a size that the file must have.
  func size(_ name: StaticString) throws(Fault) -> Int {
    guard let size = try optionalSize(name) else { throw wrong(cText(name), "missing") }
    return size
  }

  func optionalSize(_ name: StaticString) throws(Fault) -> Int? {
    guard let value = try numbers(cText(name)) else { return nil }
    guard let size = value.whole, size >= 1, size <= 1 << 31 else { throw wrong(cText(name), "not 1 to 2^31") }
    return size
  }

  func wrong(_ name: UnsafePointer<CChar>, _ what: StaticString) -> Fault {
    .invalid("\(architecture.name).\(name) is \(what): \(header.path)")
  }

  /// Of MOEI_META_IS.
  private func require(_ found: GGUFValue, _ row: moei_metadata) throws(Fault) {
    var isOne = false
    JSONText.forEachWord(row.otherwise!) { word in
      if let text = found.text, text == word { isOne = true }
      if let flag = found.flag, word == (flag ? "true" : "false") { isOne = true }
      if let number = found.single?.number, number == decimal(word) { isOne = true }
    }
    if !isOne {
      throw .invalid(
        "\(architecture.name).\(row.name!) has a value that is not supported: it must be \(row.otherwise!): \(header.path)"
      )
    }
  }

  // MARK: layers

  private func hasExperts(_ n: Int) -> Bool {
    withText {
      $0.append("blk.")
      $0.append(n)
      $0.append(".ffn_gate_inp.weight")
    } body: {
      checkpoint.find($0) != nil
    }
  }

  private mutating func list(_ name: UnsafePointer<CChar>, withExperts: Bool) {
    key(name)
    json.append("[")
    var listed = 0
    for n in 0..<layers where hasExperts(n) == withExperts {
      if listed > 0 { json.append(", ") }
      json.append(n)
      listed += 1
    }
    json.append("]")
  }

  private mutating func lastWithExperts(_ name: UnsafePointer<CChar>) {
    var last = 0
    for n in 0..<layers where hasExperts(n) { last = n }
    key(name)
    json.append(last)
  }

  // MARK: tokens

  /// Beginning and end of texts.
  private mutating func writeTokens() {
    if let first = header.value("tokenizer.ggml.bos_token_id"), first.whole != nil {
      key("bos_token_id")
      number(first)
    }
    if let last = header.value("tokenizer.ggml.eos_token_id"), last.whole != nil {
      key("eos_token_id")
      number(last)
    }
  }

  // MARK: JSON

  mutating func key(_ name: UnsafePointer<CChar>) {
    if !isFirst { json.append(", ") }
    isFirst = false
    json.append("\"")
    json.append(name)
    json.append("\": ")
  }
  mutating func key(_ name: StaticString) { key(cText(name)) }

  mutating func text(_ text: UnsafePointer<CChar>) {
    json.append("\"")
    json.append(text)
    json.append("\"")
  }
  mutating func text(_ text: StaticString) { self.text(cText(text)) }

  mutating func flag(_ name: UnsafePointer<CChar>, _ value: Bool) {
    key(name)
    if value { json.append("true") } else { json.append("false") }
  }
  mutating func flag(_ name: StaticString, _ value: Bool) { flag(cText(name), value) }

  mutating func whole(_ name: StaticString, _ value: Int) {
    key(name)
    json.append(value)
  }

  /// A finite one.
  mutating func number(_ value: GGUFValue) {
    if let whole = value.whole { return json.append(whole) }
    number(value.number ?? 0, isSingle: value.type == .f32)
  }

  mutating func number(_ value: Double, isSingle: Bool) { json.append(shortest: value, isSingle: isSingle) }

  mutating func object(_ name: StaticString, _ body: (inout GGUFConfiguration) throws(Fault) -> Void) throws(Fault) {
    key(name)
    json.append("{")
    isFirst = true
    try body(&self)
    isFirst = false
    json.append("}")
  }

  /// Numbers of a tensor, which are float32.
  mutating func numbers(_ name: StaticString, of tensor: StoredTensor) throws(Fault) {
    if tensor.type != .f32 || tensor.shape.rank != 1 || tensor.shape[0] > 4096 {
      throw .invalid(
        "\(tensor.name): \(tensor.typeName) of \(tensor.shape) is no list of factors in F32: \(header.path)")
    }
    key(name)
    json.append("[")
    var (fault, first) = (Fault?.none, true)
    try checkpoint.forEachElement(tensor) { (_, element) throws(Fault) in
      let value = element.load(as: Float.self)
      if !(value > 0 && value < .infinity) {
        fault = .invalid("\(tensor.name): a factor is not above 0: \(header.path)")
      }
      if fault != nil { return }
      if !first { json.append(", ") }
      first = false
      json.append(shortest: Double(value), isSingle: false)
    }
    if let fault { throw fault }
    json.append("]")
  }
}

extension GGUFHeader {
  /// Of a key behind the architecture's name.
  func value(_ architecture: Architecture, _ name: UnsafePointer<CChar>) -> GGUFValue? {
    withText {
      $0.append(architecture.name)
      $0.append(".")
      $0.append(name)
    } body: {
      value($0)
    }
  }

  func whole(_ architecture: Architecture, _ name: StaticString) -> Int? {
    value(architecture, cText(name))?.single?.whole
  }
}
