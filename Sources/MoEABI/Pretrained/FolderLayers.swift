import CLayouts
import CMoE
import MoE

/// Which layers are MoE, and what attention of each sees, by the family's rules.
struct FolderLayers {
  let keys: FolderKeys
  let count: Int
  private let layerRule: Int
  private let windowRule: Int

  init(_ keys: FolderKeys, count: Int) {
    (self.keys, self.count) = (keys, count)
    layerRule = Int(keys.family.table.pointee.layer_rule)
    windowRule = Int(keys.family.table.pointee.window_rule)
  }

  /// [count]
  func fill(_ layers: UnsafeMutablePointer<moe_model_layer_config>) throws(Fault) {
    layers.initialize(repeating: moe_model_layer_config(), count: count)
    try fillDense(layers)
    try fillWindows(layers)
    try fillRotation(layers)
  }

  // MARK: MoE or dense

  private func fillDense(_ layers: UnsafeMutablePointer<moe_model_layer_config>) throws(Fault) {
    switch layerRule {
    case MOEI_LAYERS_NONE: for n in 0..<count { layers[n].dense = 1 }
    case MOEI_LAYERS_STEP:
      let step = try atLeast1("decoder_sparse_step")
      for n in 0..<count where (n + 1) % step != 0 { layers[n].dense = 1 }
      try forEach("mlp_only_layers") { (_, n) throws(Fault) in
        if n >= 0 && n < count { layers[n].dense = 1 }
      }
    case MOEI_LAYERS_FIRST_DENSE:
      let otherwise = Int(keys.family.table.pointee.first_dense)
      let (first, step) = (try keys.whole("first_k_dense_replace") ?? otherwise, try atLeast1("moe_layer_freq"))
      for n in 0..<count where n < first || n % step != 0 { layers[n].dense = 1 }
    case MOEI_LAYERS_INTERVAL:
      let (first, step) = (try keys.whole("moe_layer_start_index") ?? 1, try atLeast1("moe_layer_interval"))
      var last = try keys.whole("moe_layer_end_index") ?? -1
      if last == -1 { last = count - 1 }
      for n in 0..<count where n < first || n > last || (n + 1) % step != 0 { layers[n].dense = 1 }
    case MOEI_LAYERS_LISTED:
      let isListed = keys.value("moe_layers") != nil
      let step = try atLeast1("interleave_moe_layer_step")
      for n in 0..<count where isListed || (n + 1) % step != 0 { layers[n].dense = 1 }
      try forEach("moe_layers") { (_, n) throws(Fault) in
        if n >= 0 && n < count { layers[n].dense = 0 }
      }
    default: break
    }
  }

  private func atLeast1(_ name: StaticString) throws(Fault) -> Int {
    let step = try keys.whole(name) ?? 1
    if step < 1 { throw .invalid("config.json: \(name) = \(step) is below 1") }
    return step
  }

  /// The numbers of a list that may be missing.
  private func forEach(_ name: StaticString, _ body: (Int, Int) throws(Fault) -> Void) throws(Fault) {
    guard let list = keys.value(name) else { return }
    if list.kind != .array { throw .invalid("config.json: \(name) is no list") }
    var index = 0
    try list.forEach { (value) throws(Fault) in
      try body(index, try keys.whole(value, cText(name)))
      index += 1
    }
  }

  // MARK: windows

  private func fillWindows(_ layers: UnsafeMutablePointer<moe_model_layer_config>) throws(Fault) {
    let isUsed = try keys.flag("use_sliding_window") ?? false
    let isThere = keys.language.member("sliding_window") != nil
    let window = isThere ? try size("sliding_window") : Int(keys.family.table.pointee.window)
    switch windowRule {
    case MOEI_WINDOW_ALL: for n in 0..<count { layers[n].window = Int64(window) }
    case MOEI_WINDOW_IF_USED where isUsed: for n in 0..<count { layers[n].window = Int64(window) }
    case MOEI_WINDOW_ALTERNATES: try types(layers, window: window) { window > 0 && $0 % 2 == 0 }
    case MOEI_WINDOW_ABOVE:
      let first = try keys.whole("max_window_layers") ?? 62
      try types(layers, window: window) { window > 0 && $0 >= first }
    case MOEI_WINDOW_ABOVE_IF_USED:
      let first = try keys.whole("max_window_layers") ?? 28
      try types(layers, window: isUsed ? window : 0) { isUsed && window > 0 && $0 >= first }
    case MOEI_WINDOW_BELOW:
      let last = try keys.whole("max_window_layers") ?? 28
      try types(layers, window: isUsed ? window : 0) { isUsed && $0 % 2 == 0 && $0 < last }
    case MOEI_WINDOW_CHUNKS: try fillChunks(layers)
    case MOEI_WINDOW_FULL_ONLY:
      try types(layers, window: 0) { _ in false }
      let step = try keys.whole("full_attention_interval") ?? 4
      if keys.value("layer_types") == nil && step != 1 { throw unsupported(JSONText(cText("linear_attention")), 0) }
    default: break
    }
  }

  private func size(_ name: StaticString) throws(Fault) -> Int {
    let size = try keys.whole(name) ?? 0
    if size < 0 { throw .invalid("config.json: \(name) = \(size) is below 0") }
    return size
  }

  /// By layer_types; `slides` where the file does not list them.
  private func types(
    _ layers: UnsafeMutablePointer<moe_model_layer_config>, window: Int, slides: (Int) -> Bool
  ) throws(Fault) {
    let isListed = try forEachType { (n, type) throws(Fault) in
      if type.isAmong(cText("sliding_attention")) {
        if window == 0 {
          throw .invalid("config.json: layer_types has sliding_attention, but no sliding_window is used")
        }
        layers[n].window = Int64(window)
      } else if !type.isAmong(cText("full_attention")) {
        throw unsupported(type, n)
      }
    }
    if !isListed { for n in 0..<count where slides(n) { layers[n].window = Int64(window) } }
  }

  private func fillChunks(_ layers: UnsafeMutablePointer<moe_model_layer_config>) throws(Fault) {
    let chunk = keys.language.member("attention_chunk_size") == nil ? 8192 : try size("attention_chunk_size")
    let isListed = try forEachType { (n, type) throws(Fault) in
      if type.isAmong(cText("chunked_attention")) {
        if chunk == 0 { throw .invalid("config.json: layer_types has chunked_attention, but no attention_chunk_size") }
        layers[n].chunk = Int64(chunk)
      } else if !type.isAmong(cText("full_attention")) {
        throw unsupported(type, n)
      }
    }
    if isListed { return }
    try fillRotation(layers)
    for n in 0..<count where layers[n].rotary >= 0 { layers[n].chunk = Int64(chunk) }
  }

  private func unsupported(_ type: JSONText, _ n: Int) -> Fault {
    .invalid(
      "config.json: layer_types: layer \(n) is \(type), which is not supported for model_type \(keys.family.name)")
  }

  /// Whether there is a list.
  private func forEachType(_ body: (Int, JSONText) throws(Fault) -> Void) throws(Fault) -> Bool {
    guard let list = keys.value("layer_types") else { return false }
    if list.kind != .array || list.count != count {
      throw .invalid("config.json: layer_types is no list of num_hidden_layers = \(count) words")
    }
    var n = 0
    try list.forEach { (value) throws(Fault) in
      if value.kind != .text { throw .invalid("config.json: layer_types: number \(n) is no word") }
      try body(n, value.text)
      n += 1
    }
    return true
  }

  // MARK: layers without rotary positions

  private func fillRotation(_ layers: UnsafeMutablePointer<moe_model_layer_config>) throws(Fault) {
    if Int(keys.family.table.pointee.rope_rule) != MOEI_ROPE_SOMETIMES { return }
    let isListed = keys.value("no_rope_layers").map { $0.count > 0 } ?? false
    let step = try keys.whole("no_rope_layer_interval") ?? 4
    if step < 1 { throw .invalid("config.json: no_rope_layer_interval = \(step) is below 1") }
    for n in 0..<count where !isListed && (n + 1) % step == 0 { layers[n].rotary = -1 }
    // In spite of the name, 1 stands for layers that turn.
    try forEach("no_rope_layers") { (n, turns) throws(Fault) in
      if n < count && turns == 0 { layers[n].rotary = -1 }
    }
  }
}
