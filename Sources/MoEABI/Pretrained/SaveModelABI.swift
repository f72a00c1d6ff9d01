import CLayouts
import CMoE
import MoE

@implementation @_cdecl("moe_model_save")
public func moe_model_save(
  _ model: OpaquePointer?, _ folder: UnsafePointer<CChar>?, _ options: UnsafePointer<moe_save_options>?
) -> moe_status {
  attempt { () throws(Fault) in
    let model = try handle(model, "model", as: Model.self)
    try model.pointee.beginCall()
    do throws(Fault) {
      let folder = try required(folder, "folder")
      var copy = moe_save_options()
      if options != nil { copy = try read(options, "options") }
      try save(model, to: folder, copy)
    } catch {
      throw model.pointee.told(error)
    }
  }
}

private func save(
  _ model: ModelPointer, to folder: UnsafePointer<CChar>, _ options: moe_save_options
) throws(Fault) {
  if model.pointee.isPacked && options.dtype != 0 {
    throw .invalid("options.dtype: the model's weights are packed, and stay as they are: leave it OWN")
  }
  if let text = options.config {
    return try model.pointee.context.withConfig(text) { (family, tree, language) throws(Fault) in
      let keys = FolderKeys(family, root: tree.root, language: language)
      try save(model, to: folder, options, keys, tree)
    }
  }
  try model.pointee.withOrigin { (family, shapes, type, tree) throws(Fault) in
    try model.pointee.save(to: folder, ModelSaving(options, family, shapes, tree, otherwise: type))
  }
}

/// By a config.json of the caller's.
private func save(
  _ model: ModelPointer, to folder: UnsafePointer<CChar>, _ options: moe_save_options, _ keys: FolderKeys,
  _ tree: JSONTree
) throws(Fault) {
  let context = model.pointee.context
  try withUnknownKeysRefused(keys)
  let configuration = try FolderConfiguration(keys, in: context)
  defer { configuration.free(context) }
  let own = model.pointee.configuration
  try require("num_hidden_layers", Int(configuration.model.n_layers), own.layers)
  try require("hidden_size", Int(configuration.model.hidden_size), own.hidden)
  try require("num_attention_heads", Int(configuration.model.n_heads), own.heads)
  try require("num_key_value_heads", configuration.shapes.keyHeads, own.keyHeads)
  try require("head_dim", configuration.shapes.headSize, own.headSize)
  try require("vocab_size", Int(configuration.model.vocabulary_size), own.vocabulary)
  try model.pointee.save(
    to: folder, ModelSaving(options, keys.family, configuration.shapes, tree, otherwise: own.weights))
}

private func withUnknownKeysRefused(_ keys: FolderKeys) throws(Fault) {
  var fault: Fault?
  withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { memory in
    var ignored = TextBuffer(memory.baseAddress!, capacity: 256)
    do throws(Fault) { try keys.requireKnown(&ignored) } catch { fault = error }
  }
  if let fault { throw fault }
}

private func require(_ name: StaticString, _ given: Int, _ own: Int) throws(Fault) {
  if given != own { throw .invalid("options.config: \(name) = \(given), but the model has \(own)") }
}

extension ModelSaving {
  fileprivate init(
    _ options: moe_save_options, _ family: Family, _ shapes: TensorRows.Shapes, _ tree: JSONTree,
    otherwise type: ElementType
  ) {
    self.init(
      family, shapes, config: tree, type: ElementType(folder: options.dtype) ?? type,
      shardBytes: limit(options.max_shard_size), Progress(options.progress, options.progress_user))
  }
}
