import CLayouts
import CMoE
import MoE

/// What config.json says, by the family's table.
struct FolderKeys {
  let family: Family
  /// The whole, and the language model's part of it.
  let root: JSONValue
  let language: JSONValue

  init(_ source: PretrainedSource) { self.init(source.family, root: source.config.root, language: source.language) }

  init(_ family: Family, root: JSONValue, language: JSONValue) {
    (self.family, self.root, self.language) = (family, root, language)
  }

  var isNested: Bool { family.table.pointee.nested != nil }

  // MARK: values

  /// nil where there is none, or null. `names`: '|' stands between them.
  func value(_ names: UnsafePointer<CChar>) -> JSONValue? {
    var found: JSONValue?
    language.forEach { value in
      if found == nil, !value.isNull, let key = value.key, key.isAmong(names) { found = value }
    }
    return found
  }
  func value(_ names: StaticString) -> JSONValue? { value(cText(names)) }

  /// For messages: of the names that a key may have, the one that is there.
  private func key(of value: JSONValue, _ names: UnsafePointer<CChar>) -> JSONText { value.key ?? JSONText(names) }

  func number(_ name: StaticString) throws(Fault) -> Double? {
    guard let value = value(name) else { return nil }
    return try number(value, cText(name))
  }

  func number(_ value: JSONValue, _ name: UnsafePointer<CChar>) throws(Fault) -> Double {
    guard let number = value.number, number.isFinite else {
      throw .invalid("config.json: \(key(of: value, name)) = \(value.written) is not a number")
    }
    return number
  }

  func whole(_ name: StaticString) throws(Fault) -> Int? {
    guard let value = value(name) else { return nil }
    return try whole(value, cText(name))
  }

  func whole(_ value: JSONValue, _ name: UnsafePointer<CChar>) throws(Fault) -> Int {
    if value.kind == .array { return try same(value, name) }
    let number = try number(value, name)
    if number != number.rounded() || number.magnitude > 0x1p31 {
      throw .invalid("config.json: \(key(of: value, name)) = \(value.written) is not a whole number below 2^31")
    }
    return Int(number)
  }

  /// Of a list, one number for each layer, that are all the same.
  private func same(_ list: JSONValue, _ name: UnsafePointer<CChar>) throws(Fault) -> Int {
    var first: Int?
    try list.forEach { (value) throws(Fault) in
      let number = value.kind == .number ? try whole(value, name) : nil
      if number == nil || (first != nil && first != number) {
        throw .invalid("config.json: \(name) is a list of different values, which is not supported")
      }
      first = number
    }
    guard let first else { throw .invalid("config.json: \(name) is an empty list") }
    return first
  }

  func flag(_ name: StaticString) throws(Fault) -> Bool? {
    guard let value = value(name) else { return nil }
    return try flag(value, cText(name))
  }

  private func flag(_ value: JSONValue, _ name: UnsafePointer<CChar>) throws(Fault) -> Bool {
    if value.kind == .yes { return true }
    if value.kind != .no {
      throw .invalid("config.json: \(key(of: value, name)) = \(value.written) is neither true nor false")
    }
    return false
  }

  /// Whether the file says so: null is as false, as it is in Python.
  func isDenied(_ name: StaticString) -> Bool {
    language.member(name).map { $0.kind == .no || $0.isNull } ?? false
  }

  // MARK: into structs

  /// All keys of the table, into the model's configuration and its MoE layers'.
  func fill(_ model: UnsafeMutableRawPointer, _ moe: UnsafeMutableRawPointer) throws(Fault) {
    for index in 0..<Int(family.table.pointee.key_count) {
      let key = family.table.pointee.keys[index]
      let target = Int(key.target) == MOEI_OF_MOE ? moe : model
      try fill(key, target + Int(key.offset))
    }
    var count: Int32 = 0
    let common = moei_common_keys(&count)!
    for index in 0..<Int(count) where Int(common[index].kind) == MOEI_KEY_IS && !hasOwn(common[index].name!) {
      try require(common[index], value(common[index].name!))
    }
  }

  private func hasOwn(_ name: UnsafePointer<CChar>) -> Bool {
    for index in 0..<Int(family.table.pointee.key_count)
    where JSONText(name).isAmong(family.table.pointee.keys[index].name!) { return true }
    return false
  }

  private func fill(_ key: moei_key, _ target: UnsafeMutableRawPointer) throws(Fault) {
    let name = UnsafePointer<CChar>(key.name!)
    var value = value(name)
    // Of a model with other parts it is the whole that ties.
    if isNested && compareText(name, cText("tie_word_embeddings")) == 0 {
      value = root.member(name).flatMap { $0.isNull ? nil : $0 }
      target.storeBytes(
        of: try value.map { (found) throws(Fault) in try flag(found, name) } ?? false ? 1 : 0, as: Int32.self)
      return
    }
    switch Int(key.kind) {
    case MOEI_KEY_IGNORED, MOEI_KEY_RULE: return
    case MOEI_KEY_IS: try require(key, value ?? null(name))
    case MOEI_KEY_FLAG, MOEI_KEY_NOT:
      let otherwise = null(name) == nil && isDefault(key, "true")
      let isTrue = try value.map { (found) throws(Fault) in try flag(found, name) } ?? otherwise
      target.storeBytes(of: isTrue == (Int(key.kind) == MOEI_KEY_FLAG) ? 1 : 0, as: Int32.self)
    default: try fill(key, value, name, target)
    }
  }

  /// Of MOEI_KEY_IS.
  private func require(_ key: moei_key, _ value: JSONValue?) throws(Fault) {
    guard let value else { return }
    let isAllowed = value.isNull ? !isDefault(key, "true") : isOne(value, of: key.otherwise!)
    if !isAllowed {
      throw .invalid(
        "config.json: \(self.key(of: value, key.name)) = \(value.written) is not supported for model_type \(family.name): it must be \(key.otherwise)"
      )
    }
  }

  /// The null that the file has in place of a value; nil where it has another or none.
  private func null(_ names: UnsafePointer<CChar>) -> JSONValue? {
    if value(names) != nil { return nil }
    var found: JSONValue?
    language.forEach { value in
      if value.isNull, let key = value.key, key.isAmong(names) { found = value }
    }
    return found
  }

  /// Of a number.
  private func fill(
    _ key: moei_key, _ value: JSONValue?, _ name: UnsafePointer<CChar>, _ target: UnsafeMutableRawPointer
  ) throws(Fault) {
    guard value != nil || key.otherwise != nil else {
      throw .invalid("config.json: \(name) is missing, which a model of model_type \(family.name) must have")
    }
    let otherwise = key.otherwise.map { decimal(JSONText($0)) } ?? 0
    switch Int(key.kind) {
    case MOEI_KEY_SIZE, MOEI_KEY_COUNT:
      // A size that is null is none, or follows from others, and so does 0.
      let isNone = Int(key.kind) == MOEI_KEY_SIZE && null(name) != nil
      let number = try value.map { (found) throws(Fault) in try whole(found, name) } ?? (isNone ? 0 : Int(otherwise))
      if number < 0 { throw .invalid("config.json: \(name) = \(number) is below 0") }
      if Int(key.kind) == MOEI_KEY_SIZE {
        target.storeBytes(of: Int64(number), as: Int64.self)
      } else {
        target.storeBytes(of: Int32(clamping: number), as: Int32.self)
      }
    default:
      let number = try value.map { (found) throws(Fault) in try self.number(found, name) } ?? otherwise
      switch Int(key.kind) {
      case MOEI_KEY_FLOAT: target.storeBytes(of: Float(number), as: Float.self)
      case MOEI_KEY_FACTOR:
        if number == 0 { throw .invalid("config.json: \(name) = 0 is not computed") }
        target.storeBytes(of: number, as: Double.self)
      case MOEI_KEY_DIVISOR:
        if number == 0 { throw .invalid("config.json: \(name) = 0, but something is divided by it") }
        target.storeBytes(of: 1 / number, as: Double.self)
      default: target.storeBytes(of: number, as: Double.self)
      }
    }
  }

  private func isDefault(_ key: moei_key, _ word: StaticString) -> Bool {
    key.otherwise.map { compareText($0, cText(word)) == 0 } ?? false
  }

  private func isOne(_ value: JSONValue, of words: UnsafePointer<CChar>) -> Bool {
    if value.text.isAmong(words) { return true }
    if value.kind == .array {
      var all = true
      value.forEach { all = all && self.isOne($0, of: words) }
      return all
    }
    var isOne = false
    JSONText.forEachWord(words) { word in
      switch value.kind {
      case .number: if let number = value.number, number == decimal(word) { isOne = true }
      case .object: if value.count == 0, JSONText.equal(word, JSONText(cText("{}"))) { isOne = true }
      default: break
      }
    }
    return isOne
  }

  // MARK: keys that nobody knows

  /// Refuses them; `ignored` gets those that are known and say nothing about numbers.
  func requireKnown(_ ignored: inout TextBuffer) throws(Fault) {
    try requireKnown(language, &ignored)
    if isNested { try requireKnown(root, &ignored) }
    try requireReadable()
  }

  private func requireKnown(_ object: JSONValue, _ ignored: inout TextBuffer) throws(Fault) {
    var unknown = 0
    object.forEach { value in
      guard let key = value.key else { return }
      switch kind(of: key) {
      case nil: if !value.isNull { unknown += 1 }
      case MOEI_KEY_IGNORED:
        if !ignored.isEmpty { ignored.append(", ") }
        ignored.append(key)
      default: break
      }
    }
    if unknown == 0 { return }
    throw withNames(of: object) { names in
      .invalid(
        """
        config.json: \(unknown) keys are unknown for model_type \(family.name), and may change its numbers: \(names); where they do \
        not, take them out
        """)
    }
  }

  private func withNames(of object: JSONValue, _ body: (UnsafePointer<CChar>) -> Fault) -> Fault {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { memory in
      var (text, listed) = (TextBuffer(memory.baseAddress!, capacity: 256), 0)
      object.forEach { value in
        guard let key = value.key, kind(of: key) == nil, !value.isNull, listed < 6 else { return }
        if listed > 0 { text.append(", ") }
        text.append(key)
        listed += 1
      }
      return body(UnsafePointer(memory.baseAddress!))
    }
  }

  private func kind(of key: JSONText) -> Int? {
    for index in 0..<Int(family.table.pointee.key_count) {
      let own = family.table.pointee.keys[index]
      if key.isAmong(own.name!) { return Int(own.kind) }
    }
    var count: Int32 = 0
    let common = moei_common_keys(&count)!
    for index in 0..<Int(count) where key.isAmong(common[index].name!) { return Int(common[index].kind) }
    return nil
  }

  /// Which quantised weights are read: what their tensors are, QuantisedTensors sees.
  private func requireReadable() throws(Fault) {
    guard let quantised = root.member("quantization_config"), !quantised.isNull else { return }
    let method = quantised.member("quant_method")?.text ?? JSONText(cText("an unknown format"))
    func must(_ key: StaticString, be words: StaticString) throws(Fault) {
      guard let found = quantised.member(key), !found.isNull, !found.text.isAmong(cText(words)) else { return }
      throw .invalid(
        "config.json: quantization_config: \(key) = \(found.written) of \(method) is not read: it must be \(words); convert the model to bfloat16 first"
      )
    }
    if method.isAmong(cText("libmoe")) { return try must("format", be: "panels") }
    if method.isAmong(cText("mxfp4")) && family.table.pointee.layouts.1 != 0 { return }
    if method.isAmong(cText("awq")) {
      try must("bits", be: "4")
      try must("w_bit", be: "4")
      return try must("version", be: "gemm|GEMM")
    }
    if method.isAmong(cText("gptq")) {
      try must("bits", be: "2|4|8")
      return try must("checkpoint_format", be: "gptq|gptq_v2")
    }
    if method.isAmong(cText("compressed-tensors")) {
      return try must(
        "format",
        be:
          "pack-quantized|float-quantized|int-quantized|naive-quantized|nvfp4-pack-quantized|mxfp4-pack-quantized|mixed-precision"
      )
    }
    if method.isAmong(cText("fp8|fbgemm_fp8|modelopt")) { return }
    throw .invalid(
      "config.json: quantization_config: weights in \(method) are not read: compressed-tensors, awq, gptq, fp8 and modelopt's are; convert the model to bfloat16 first"
    )
  }
}
