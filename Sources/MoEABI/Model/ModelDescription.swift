import CMoE
import MoE

/// A copy of a model's configuration, as it was given, with all that its pointers lead to, in the model's memory.
struct ModelDescription {
  private let config: moe_model_config
  private let headSize: Int
  let bytes: Int

  init(_ config: moe_model_config, headSize: Int) {
    self.config = config
    self.headSize = headSize
    var measure = Copies(nil)
    _ = measure.copy(config, headSize: headSize)
    bytes = measure.bytes
  }

  /// Over so many bytes.
  func write(to memory: UnsafeMutableRawPointer) {
    var copies = Copies(memory)
    let own = copies.copy(config, headSize: headSize)
    memory.initializeMemory(as: moe_model_config.self, to: own)
  }

  static func read(_ memory: UnsafeRawPointer) -> moe_model_config { memory.load(as: moe_model_config.self) }
}

/// Arrays one after the other, behind the configuration itself; without memory they are only measured.
private struct Copies {
  private let memory: UnsafeMutableRawPointer?
  private(set) var bytes = Copies.padded(MemoryLayout<moe_model_config>.size)

  init(_ memory: UnsafeMutableRawPointer?) { self.memory = memory }

  private static func padded(_ bytes: Int) -> Int { (bytes + 15) & ~15 }

  /// The boundary has read all of the arrays, so their bytes are those of an address space.
  mutating func copy<T>(_ source: UnsafePointer<T>?, _ count: Int) -> UnsafePointer<T>? {
    guard let source, count > 0 else { return nil }
    let place = bytes
    bytes += Self.padded(count * MemoryLayout<T>.stride)
    guard let memory else { return source }
    let own = (memory + place).bindMemory(to: T.self, capacity: count)
    own.initialize(from: source, count: count)
    return UnsafePointer(own)
  }

  mutating func copy(_ config: moe_model_config, headSize: Int) -> moe_model_config {
    var own = config
    own.struct_size = MemoryLayout<moe_model_config>.size
    own.layers = copy(config.layers, Int(config.n_layers))
    own.moe = copy(moe: config.moe)
    let count = Int(config.n_rotary_tables)
    own.rotary_tables = copy(config.rotary_tables, count)
    for number in 0..<count {
      var table = config.rotary_tables[number]
      let pairs = (table.rotary_size == 0 ? headSize : Int(table.rotary_size)) / 2
      table.frequencies = copy(table.frequencies, pairs)
      table.long_frequencies = copy(table.long_frequencies, pairs)
      if memory != nil { UnsafeMutablePointer(mutating: own.rotary_tables!)[number] = table }
    }
    return own
  }

  private mutating func copy(moe: UnsafePointer<moe_layer_config>?) -> UnsafePointer<moe_layer_config>? {
    guard let moe, let own = copy(moe, 1) else { return nil }
    var layer = moe.pointee
    layer.struct_size = MemoryLayout<moe_layer_config>.size
    layer.expert_groups = copy(layer.expert_groups, Int(layer.n_expert_groups))
    layer.losses = copy(layer.losses, Int(layer.n_losses))
    let choices = layer.hash_table == nil ? 0 : Int(layer.vocabulary_size) * Int(layer.top_k)
    layer.hash_table = copy(layer.hash_table, choices)
    if memory != nil { UnsafeMutablePointer(mutating: own).pointee = layer }
    return own
  }
}
