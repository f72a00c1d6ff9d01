import CLayouts
import CMoE
import MoE

typealias FolderPointer = UnsafeMutablePointer<Folder>

/// An open folder: what moe_pretrained is.
struct Folder {
  let source: PretrainedSource
  let options: moe_pretrained_options
  /// With pointers to what follows.
  private(set) var model: moe_model_config
  private(set) var info: moe_pretrained_info
  let shapes: TensorRows.Shapes
  /// Of which the files have most.
  let type: ElementType
  /// Of the experts that each layer keeps in memory; nil where all are there, and none stay in the files.
  private(set) var residentLimit: ResidentLimit?
  /// How its matrices are kept.
  private let parts: FolderParts
  var forms: PartForms { parts.forms }

  private let configuration: FolderConfiguration
  private let moe: UnsafeMutablePointer<moe_layer_config>
  private let table: UnsafeMutablePointer<moe_rotary_table>
  private let texts: UnsafeMutablePointer<CChar>  // [3,textRoom]

  private static var textRoom: Int { 2048 }

  static func open(
    _ path: UnsafePointer<CChar>, _ options: moe_pretrained_options, in context: ContextPointer
  ) throws(Fault) -> FolderPointer {
    let source = try PretrainedSource(path, in: context)
    var memory = FolderMemory(context)
    do throws(Fault) {
      let keys = FolderKeys(source)
      let own = try context.memory(Folder.self, count: 1)
      memory.folder = own
      memory.moe = try context.memory(moe_layer_config.self, count: 1)
      memory.table = try context.memory(moe_rotary_table.self, count: 1)
      memory.texts = try context.memory(CChar.self, count: 3 * textRoom)
      memory.parts = try FolderParts(options, in: context)
      memory.configuration = try FolderConfiguration(keys, in: context)
      own.initialize(to: try Folder(source, keys, options, memory))
      try own.pointee.requireFit()
      try own.pointee.limitExperts()
      return own
    } catch {
      let fault = source.isGGUF ? error.inGGUF() : error
      memory.free()
      source.free()
      throw fault
    }
  }

  private init(
    _ source: PretrainedSource, _ keys: FolderKeys, _ options: moe_pretrained_options, _ memory: FolderMemory
  ) throws(Fault) {
    (self.source, self.options) = (source, options)
    (configuration, moe, table, texts) = (memory.configuration!, memory.moe!, memory.table!, memory.texts!)
    parts = memory.parts!
    shapes = configuration.shapes
    var ignored = TextBuffer(texts + Self.textRoom, capacity: Self.textRoom)
    try keys.requireKnown(&ignored)
    var left = TextBuffer(texts + 2 * Self.textRoom, capacity: Self.textRoom)
    model = configuration.linked(moe: moe, table: table)
    info = moe_pretrained_info()
    if options.unallocated != 0 {
      if configuration.moeLayers == 0 { throw .invalid("options.unallocated: the folder's model has no experts") }
      moe.pointee.unallocated = options.unallocated
    }
    let survey: Survey
    if source.isPacked {
      type = try Self.packedType(source)
      try source.requireTensors(layers: Int(model.n_layers))
      try choosePacked()
      survey = try surveyPacked()
    } else {
      survey = try Survey(source, layers: Int(model.n_layers), names: &left)
      try source.requireLayers(Int(model.n_layers))
      type = survey.type
      choose()
    }
    fillInfo(keys, survey)
  }

  /// Whether config.json describes a model, and the files hold it: all that their headers tell.
  private func requireFit() throws(Fault) {
    if source.isPacked { return }  // the survey has seen to it
    let made = try described()
    defer { made.free() }
    try made.pointee.requireFit(source, shapes)
    try parts.require(for: made.pointee)
  }

  /// The model that config.json describes, without memory.
  private func described() throws(Fault) -> ModelPointer {
    var made: ModelPointer?
    do throws(Fault) {
      try model.requireBounds(Bounds("config"))
      try createModel(source.context, model, allocates: false) { made = $0 }
    } catch {
      throw error.inConfig()
    }
    return made!
  }

  // MARK: packed weights

  private static func packedType(_ source: PretrainedSource) throws(Fault) -> ElementType {
    if let type = source.packedType { return type }
    throw .invalid("config.json: quantization_config of quant_method libmoe has no dtype that is known: convert again")
  }

  /// What the files have is not another type's or form's.
  private mutating func choosePacked() throws(Fault) {
    if let wanted = ElementType(folder: options.weight_dtype), wanted != type {
      throw .invalid(
        "options.weight_dtype: the folder's weights are packed already, and stay as they are: leave it OWN")
    }
    if options.prepared != 0 || options.n_prepared_parts != 0 {
      throw .invalid("options.prepared: the folder's weights are packed already, and stay as they are: leave it NONE")
    }
    model.weight_dtype = type.rawValue
    model.embedding_dtype = source.embeddingType?.rawValue ?? 0
    model.inference_only = options.inference_only
    if options.inference_only == 0 { return }
    moe.pointee.unallocated = number(MOE_UNALLOCATED_EXPERT_WEIGHTS)
  }

  /// Of files that hold the model, so that no sum overflows.
  private func surveyPacked() throws(Fault) -> Survey {
    let made = try described()
    defer { made.free() }
    try made.pointee.requireFit(packed: source)
    return Survey(packed: source, made.pointee)
  }

  /// Types, by the options.
  private mutating func choose() {
    let weights = ElementType(folder: options.weight_dtype) ?? type
    model.weight_dtype = weights.rawValue
    let embedding = ElementType(folder: options.embedding_dtype) ?? (weights == .bf16 ? .bf16 : .f32)
    model.embedding_dtype = embedding.rawValue
    model.inference_only = options.inference_only
  }

  /// Where the parameters are more than may be in memory, experts stay in the files.
  private mutating func limitExperts() throws(Fault) {
    leaveToPacking()
    guard let most = limit(options.resident_limit), info.parameter_bytes > most else { return }
    let others = info.parameter_bytes - info.expert_bytes
    // What is packed takes what is known when it is read.
    if (configuration.moeLayers == 0 || others >= most) && !forms.packs(in: source.context) {
      throw .invalid(
        "options.resident_limit = \(most), but the parameters beside the routed experts take \(others) bytes: allow more than that"
      )
    }
    moe.pointee.unallocated = number(MOE_UNALLOCATED_EXPERT_WEIGHTS)
    residentLimit = ResidentLimit(ofModel: most, others: others, layers: configuration.moeLayers)
  }

  /// Experts that will be kept packed alone have memory of their own while their layer is read, and no longer.
  private mutating func leaveToPacking() {
    if options.inference_only != 0 && forms.packs(in: source.context) {
      moe.pointee.unallocated = number(MOE_UNALLOCATED_EXPERT_WEIGHTS)
    }
  }

  /// Its model will be one over ranks, whose layers allocate all that they own.
  mutating func spread() throws(Fault) {
    try requireForRanks()
    moe.pointee.unallocated = options.unallocated
  }

  private mutating func fillInfo(_ keys: FolderKeys, _ survey: Survey) {
    info.struct_size = MemoryLayout<moe_pretrained_info>.size
    var name = TextBuffer(texts, capacity: Self.textRoom)
    name.append(source.family.name)
    (info.model_type, info.ignored_keys) = (UnsafePointer(texts), UnsafePointer(texts + Self.textRoom))
    info.left_tensors = UnsafePointer(texts + 2 * Self.textRoom)
    (info.n_left_tensors, info.n_tensors) = (Int64(survey.left), Int64(source.tensorCount))
    info.n_parameters = Int64(survey.all)
    let (experts, used) = (Int(moe.pointee.n_experts), Int(moe.pointee.top_k))
    info.n_active = Int64(
      survey.all - survey.experts + (experts > 0 ? survey.experts / experts * min(used, experts) : 0))
    info.n_moe_layers = Int64(configuration.moeLayers)
    info.dtype = type.folder
    info.file_bytes = survey.bytes
    let weights = ElementType(rawValue: model.weight_dtype) ?? .f32
    let embedding = ElementType(rawValue: model.embedding_dtype) ?? .f32
    if source.isPacked {
      (info.parameter_bytes, info.expert_bytes) = (survey.bytes, survey.packedExperts)
    } else {
      info.parameter_bytes =
        weights.bytes(survey.matrices) + embedding.bytes(survey.embeddings) + ElementType.f32.bytes(survey.others)
      info.expert_bytes = weights.bytes(survey.experts)
    }
    info.config = source.configText
    info.max_positions = ((try? keys.whole("max_position_embeddings")) ?? nil).map { Int64($0) } ?? 0
  }

  var progress: Progress { Progress(options.progress, options.progress_user) }

}

extension FolderPointer {
  func free() {
    let (folder, context) = (pointee, pointee.source.context)
    folder.freeParts()
    context.release(self)
    // It keeps the context alive, and so goes last.
    folder.source.free()
  }
}

extension Folder {
  fileprivate func freeParts() {
    let context = source.context
    configuration.free(context)
    parts.free(context)
    context.release(moe)
    context.release(table)
    context.release(texts)
  }
}

/// What a folder is made of, until it is whole.
private struct FolderMemory {
  let context: ContextPointer
  var folder: FolderPointer?
  var moe: UnsafeMutablePointer<moe_layer_config>?
  var table: UnsafeMutablePointer<moe_rotary_table>?
  var texts: UnsafeMutablePointer<CChar>?
  var parts: FolderParts?
  var configuration: FolderConfiguration?

  init(_ context: ContextPointer) { self.context = context }

  func free() {
    configuration?.free(context)
    parts?.free(context)
    context.release(texts)
    context.release(table)
    context.release(moe)
    context.release(folder)
  }
}

extension ElementType {
  /// Of a moe_folder_dtype; nil where it is OWN.
  init?(folder number: Int32) {
    switch number {
    case 1: self = .f32
    case 2: self = .bf16
    case 3: self = .f16
    default: return nil
    }
  }

  var folder: Int32 {
    switch self {
    case .f32: 1
    case .bf16: 2
    case .f16: 3
    }
  }
}
