import CLayouts
import CMoE
import MoE

@implementation @_cdecl("moe_pretrained_open")
public func moe_pretrained_open(
  _ context: OpaquePointer?, _ folder: UnsafePointer<CChar>?, _ options: UnsafePointer<moe_pretrained_options>?,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let folder = try required(folder, "folder")
    let options = try readOptions(options)
    let out = try required(out, "out")
    out.pointee = OpaquePointer(try Folder.open(folder, options, in: context))
  }
}

private func readOptions(_ options: UnsafePointer<moe_pretrained_options>?) throws(Fault) -> moe_pretrained_options {
  var copy = moe_pretrained_options()
  if options != nil { copy = try read(options, "options") }
  if copy.embedding_dtype == 3 {
    throw .invalid(
      "options.embedding_dtype = MOE_FOLDER_DTYPE_F16: an embedding is MOE_FOLDER_DTYPE_F32 or MOE_FOLDER_DTYPE_BF16")
  }
  if copy.resident_limit != 0 && copy.inference_only == 0 {
    throw .invalid("options.resident_limit needs inference_only = 1: experts that stay in the files cannot be trained")
  }
  let gradients = Int32(MOE_UNALLOCATED_EXPERT_GRADIENTS.rawValue)
  if copy.unallocated != 0 && (copy.unallocated != gradients || copy.inference_only == 1) {
    throw .invalid(
      "options.unallocated: of a folder it is MOE_UNALLOCATED_EXPERT_GRADIENTS or nothing, and with inference_only = 0"
    )
  }
  return copy
}

@implementation @_cdecl("moe_pretrained_free")
public func moe_pretrained_free(_ pretrained: OpaquePointer?) {
  guard let pretrained else { return }
  let folder = FolderPointer(pretrained)
  folder.free()
}

@implementation @_cdecl("moe_pretrained_config")
public func moe_pretrained_config(
  _ pretrained: OpaquePointer?, _ config: UnsafeMutablePointer<moe_model_config>?
) -> moe_status {
  attempt { () throws(Fault) in
    let folder = try handle(pretrained, "pretrained", as: Folder.self)
    let config = try required(config, "config")
    let size = try requireSize(config, "config")
    config.pointee = folder.pointee.model
    config.pointee.struct_size = size
  }
}

@implementation @_cdecl("moe_pretrained_describe")
public func moe_pretrained_describe(
  _ pretrained: OpaquePointer?, _ info: UnsafeMutablePointer<moe_pretrained_info>?
) -> moe_status {
  attempt { () throws(Fault) in
    let folder = try handle(pretrained, "pretrained", as: Folder.self)
    let info = try required(info, "info")
    let size = try requireSize(info, "info")
    info.pointee = folder.pointee.info
    info.pointee.struct_size = size
  }
}

@implementation @_cdecl("moe_pretrained_load")
public func moe_pretrained_load(_ pretrained: OpaquePointer?, _ model: OpaquePointer?) -> moe_status {
  attempt { () throws(Fault) in
    let folder = try handle(pretrained, "pretrained", as: Folder.self)
    let model = try handle(model, "model", as: Model.self)
    try model.pointee.beginCall()
    do throws(Fault) {
      guard let ranks = model.pointee.ranks else { return try folder.pointee.load(model, isNew: false) }
      try folder.pointee.load(model, isNew: false, over: ranks)
    } catch {
      throw model.pointee.told(error)
    }
  }
}

@implementation @_cdecl("moe_model_load")
public func moe_model_load(
  _ context: OpaquePointer?, _ folder: UnsafePointer<CChar>?, _ options: UnsafePointer<moe_pretrained_options>?,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let path = try required(folder, "folder")
    let options = try readOptions(options)
    let out = try required(out, "out")
    let folder = try Folder.open(path, options, in: context)
    defer { folder.free() }
    var made: ModelPointer?
    // What is packed is given memory as it is read.
    try createModel(
      context, folder.pointee.model, startsRandom: false, allocates: !folder.pointee.packs(in: context)
    ) { made = $0 }
    guard let model = made else { return }
    do throws(Fault) {
      try folder.pointee.load(model, isNew: true)
    } catch {
      model.free()
      throw error
    }
    out.pointee = OpaquePointer(model)
  }
}

@implementation @_cdecl("moe_model_load_distributed")
public func moe_model_load_distributed(
  _ context: OpaquePointer?, _ folder: UnsafePointer<CChar>?, _ options: UnsafePointer<moe_pretrained_options>?,
  _ communicator: UnsafePointer<moe_communicator>?, _ placement: UnsafePointer<moe_placement>?,
  _ out: UnsafeMutablePointer<OpaquePointer?>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    try overRanks(communicator, in: context) { (ranks) throws(Fault) in
      let path = try required(folder, "folder")
      let options = try readOptions(options)
      var placed = moe_placement()
      if placement != nil { placed = try read(placement, "placement") }
      let out = try required(out, "out")
      let folder = try Folder.open(path, options, in: context)
      defer { folder.free() }
      try folder.pointee.spread()
      let spreading = Spreading(
        communicator: try Communicator(try read(communicator, "communicator")), placement: placed)
      var made: ModelPointer?
      try createModel(
        context, folder.pointee.model, startsRandom: false, allocates: !folder.pointee.packs(in: context),
        over: spreading
      ) { made = $0 }
      guard let model = made else { return }
      do throws(Fault) {
        try folder.pointee.load(model, isNew: true, over: ranks)
      } catch {
        model.free()
        throw error
      }
      out.pointee = OpaquePointer(model)
    }
  }
}

@implementation @_cdecl("moe_pretrained_family")
public func moe_pretrained_family(_ index: Int64) -> UnsafePointer<CChar>? {
  Int32(exactly: index).flatMap { Family(rawValue: $0) }?.name
}

extension Folder {
  private func calibration() throws(Fault) -> CalibrationPointer? {
    guard let given = options.calibration else { return nil }
    return try handle(given, "options.calibration", as: Calibration.self)
  }

  /// All ranks read it together.
  func load(_ model: ModelPointer, isNew: Bool, over ranks: RanksPointer) throws(Fault) {
    try requireForRanks()
    var hash = Hash()
    forms.add(to: &hash)
    try ranks.read(model, options: hash) { () throws(Fault) in try load(model, isNew: isNew) }
  }

  /// Refuses what a rank alone cannot do with its experts.
  func requireForRanks() throws(Fault) {
    if residentLimit != nil {
      throw .invalid(
        "options.resident_limit: a model over ranks has all of its experts in memory; more ranks take less memory each")
    }
    if options.calibration != nil {
      throw .invalid("options.calibration: few bits are chosen in one process, which saves the folder for ranks")
    }
  }

  /// `isNew`: nobody else has the model.
  func load(_ model: ModelPointer, isNew: Bool) throws(Fault) {
    let packs = packs(in: model.pointee.context)
    if packs && model.pointee.isTrainable && !isNew {
      throw .invalid(
        "the weights are packed, or options.prepared packs them, and the model has gradients of them: make one by moe_model_load, or one that is inference_only"
      )
    }
    if source.isPacked {
      return try model.loadPacked(source, shapes, type: type, residentLimit: residentLimit, progress)
    }
    let calibration = try calibration()
    try calibration?.pointee.requireFit(model.pointee)
    if calibration != nil && forms.keepsStored {
      throw .invalid(
        "options.calibration chooses few bits, but MOE_PREPARED_STORED keeps those that the files have: give another form, such as MOE_PREPARED_INT4"
      )
    }
    if residentLimit != nil && calibration != nil {
      throw .badState(
        "options.calibration: under options.resident_limit experts stay in the files, where they are packed anew each time they are read: raise the limit to \(info.parameter_bytes) bytes"
      )
    }
    try model.load(
      source, shapes, type: type, residentLimit: residentLimit, forms: packs ? forms : nil, calibration,
      isNew: isNew, progress)
  }

  /// Whether matrices are packed, or will be while they are read; experts that stay in the files when they come from there.
  fileprivate func packs(in context: ContextPointer) -> Bool { source.isPacked || forms.packs(in: context) }
}
