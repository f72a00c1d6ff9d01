import CLayouts
import CShims

/// A folder of a model: the text of its config.json, and the tensors of its files.
public struct PretrainedSource {
  public let context: ContextPointer
  public let family: Family
  /// Whose names the tensors have.
  let names: Family
  /// The whole text, and the part of it that is about the language model.
  public let config: JSONTree
  public let language: JSONValue
  let checkpoint: CheckpointPointer
  /// The folder's, or the file's, as it was given.
  let path: UnsafePointer<CChar>
  private let text: UnsafeMutablePointer<UInt8>

  public var isGGUF: Bool { checkpoint.pointee.isGGUF }

  // MARK: packed weights

  private var packing: JSONValue? {
    guard let found = config.root.member("quantization_config"), let method = found.member("quant_method"),
      method.text.isAmong(cText("libmoe"))
    else { return nil }
    return found
  }

  /// Whether libmoe wrote it, with weights in panels.
  public var isPacked: Bool { packing != nil }
  /// Of weights that are packed; nil where config.json does not say.
  public var packedType: ElementType? {
    guard let type = packing?.member("dtype")?.text else { return nil }
    if type.isAmong(cText("float32")) { return .f32 }
    if type.isAmong(cText("bfloat16")) { return .bf16 }
    return type.isAmong(cText("float16")) ? .f16 : nil
  }
  /// Whether there can be so many layers: each has tensors of its own.
  public func requireTensors(layers: Int) throws(Fault) {
    if layers > tensorCount {
      throw .invalid("config.json speaks of \(layers) layers, but the files have \(tensorCount) tensors: \(path)")
    }
  }
  /// Of the embedding; nil where there is none.
  public var embeddingType: StoredType? { checkpoint.pointee.tensor(cText("embed.weight"))?.type }

  /// The weights again, mapped into memory.
  func openMapped() throws(Fault) -> CheckpointPointer {
    let paths = try FolderPaths(path, context.pointee.allocator)
    defer { paths.free() }
    return try Self.openWeights(paths, in: context, isMapped: true)
  }

  /// Of config.json, which for a GGUF file stands for its keys.
  public var configText: UnsafePointer<CChar> { UnsafeRawPointer(text).assumingMemoryBound(to: CChar.self) }

  /// `path`: a folder's, or a GGUF file's.
  public init(_ path: UnsafePointer<CChar>, in context: ContextPointer) throws(Fault) {
    if GGUFHeader.isFile(path) {
      self = try PretrainedSource(gguf: path, in: context)
    } else {
      try Self.requireFolder(path)
      self = try PretrainedSource(folder: path, in: context)
    }
  }

  /// Refuses what is not there, and a file: it could only have been a GGUF file.
  private static func requireFolder(_ path: UnsafePointer<CChar>) throws(Fault) {
    let found: InputFile?
    do throws(Fault) { found = try InputFile.ifThere(path) } catch { return }  // a folder is no file that opens
    guard let found else { throw Fault(.io, "no such file or folder: \(path)") }
    found.close()
    throw .invalid("a file that does not begin as a GGUF file does: fetch it again, or name a folder: \(path)")
  }

  private init(gguf path: UnsafePointer<CChar>, in context: ContextPointer) throws(Fault) {
    self.context = context
    let allocator = context.pointee.allocator
    checkpoint = try .open(path, in: context, isMapped: false)
    do throws(Fault) {
      let capacity = GGUFConfiguration.capacity(checkpoint.pointee)
      let name = try allocator.allocate(CChar.self, count: textLength(path) + 1)
      self.path = UnsafePointer(name)
      name.update(from: path, count: textLength(path) + 1)
      do throws(Fault) {
        text = try allocator.allocate(UInt8.self, count: capacity)
        do throws(Fault) {
          (config, names, family, language) = try Self.read(checkpoint.pointee, path, text, capacity, allocator)
        } catch {
          allocator.deallocate(text)
          throw error
        }
      } catch {
        allocator.deallocate(name)
        throw error
      }
    } catch {
      checkpoint.free()
      throw error
    }
    context.retain()
  }

  /// What a GGUF file's keys say as config.json does, and how its tensors are called.
  private static func read(
    _ checkpoint: Checkpoint, _ path: UnsafePointer<CChar>, _ text: UnsafeMutablePointer<UInt8>, _ capacity: Int,
    _ allocator: Allocator
  ) throws(Fault) -> (JSONTree, Family, Family, JSONValue) {
    let input = try InputFile(path: path)
    defer { input.close() }
    let header = try GGUFHeader(input, path: path, allocator)
    defer { header.free(allocator) }
    let memory = UnsafeMutableRawPointer(text).assumingMemoryBound(to: CChar.self)
    var configuration = try GGUFConfiguration(header, checkpoint, to: memory, capacity: capacity)
    let count = try configuration.write()
    let tree = try JSONTree(text, count: count, path: path, allocator)
    do throws(Fault) {
      let (family, language) = try Self.family(of: tree.root, path)
      return (tree, configuration.architecture.names(in: checkpoint), family, language)
    } catch {
      tree.free(allocator)
      throw error
    }
  }

  private init(folder path: UnsafePointer<CChar>, in context: ContextPointer) throws(Fault) {
    self.context = context
    let allocator = context.pointee.allocator
    let paths = try FolderPaths(path, allocator)
    defer { paths.free() }
    let name = try allocator.allocate(CChar.self, count: textLength(path) + 1)
    name.update(from: path, count: textLength(path) + 1)
    self.path = UnsafePointer(name)
    do throws(Fault) {
      (text, config) = try Self.read(paths.path("config.json"), allocator)
    } catch {
      allocator.deallocate(name)
      throw error
    }
    do throws(Fault) {
      (family, language) = try Self.family(of: config.root, paths.path("config.json"))
      names = family
      checkpoint = try Self.openWeights(paths, in: context, isMapped: false)
    } catch {
      config.free(allocator)
      allocator.deallocate(text)
      allocator.deallocate(name)
      throw error
    }
    context.retain()
    do throws(Fault) {
      try checkpoint.joinQuantised(QuantisationHints(config.root.member("quantization_config")))
    } catch {
      free()
      throw error
    }
  }

  public func free() {
    let allocator = context.pointee.allocator
    checkpoint.free()
    config.free(allocator)
    allocator.deallocate(text)
    allocator.deallocate(UnsafeMutablePointer(mutating: path))
    context.release()
  }

  public var tensorCount: Int { checkpoint.pointee.count }

  /// Whether the files have every layer, by the one tensor that all layers of all families have: a config.json that is not theirs
  /// may speak of a million.
  public func requireLayers(_ count: Int) throws(Fault) {
    for index in 0..<names.ruleCount where names.rule(index).isOfEveryLayer {
      for n in 0..<count {
        try withText { (name: inout TextBuffer) in
          names.rule(index).appendName(names, layer: n, to: &name)
        } body: { (name) throws(Fault) in
          if checkpoint.pointee.find(name) == nil {
            throw checkpoint.pointee.missingOfConfig(name).inFolder(path)
          }
        }
      }
    }
  }

  // MARK: config.json

  private static func read(
    _ path: UnsafePointer<CChar>, _ allocator: Allocator
  ) throws(Fault) -> (UnsafeMutablePointer<UInt8>, JSONTree) {
    guard let input = try InputFile.ifThere(path) else {
      throw Fault(.io, "there is no config.json: name the folder of a model, as transformers saves one: \(path)")
    }
    defer { input.close() }
    if let fault = FileKind.fault(input, path, wantsIndex: true) { throw fault }
    if input.count > JSONTree.largest {
      throw .invalid("config.json of \(input.count) bytes, more than \(JSONTree.largest): \(path)")
    }
    let text = try allocator.allocate(UInt8.self, count: input.count + 1)
    do throws(Fault) {
      let error = input.read(0, input.count, to: text)
      if error != 0 { throw .io("reading a file", path, error) }
      text[input.count] = 0
      return (text, try JSONTree(text, count: input.count, path: path, allocator))
    } catch {
      allocator.deallocate(text)
      throw error
    }
  }

  /// The family that model_type names, and the object with the language model's keys.
  static func family(of root: JSONValue, _ path: UnsafePointer<CChar>) throws(Fault) -> (Family, JSONValue) {
    if root.kind != .object { throw .invalid("config.json is no object: \(path)") }
    guard let type = root.member("model_type"), type.kind == .text else {
      throw .invalid("model_type: config.json does not say which model this is: \(path)")
    }
    guard let family = Family(named: type.text) else { throw unknown(type.text, path) }
    guard let nested = family.table.pointee.nested else { return (family, root) }
    guard let language = root.member(nested), language.kind == .object else {
      throw .invalid("\(nested): config.json of model_type \(family.name) must have it: \(path)")
    }
    return (family, language)
  }

  private static func unknown(_ name: JSONText, _ path: UnsafePointer<CChar>) -> Fault {
    var number: Int32 = 0
    while let known = moei_unsupported_at(number) {
      if name == JSONText(known.pointee.model_type) {
        return .invalid("model_type = \(name) is not supported: libmoe has no \(known.pointee.missing): \(path)")
      }
      number += 1
    }
    return .invalid(
      "model_type = \(name) is not supported: its tensors and keys are unknown; moe_pretrained_family lists the models: \(path)"
    )
  }

  // MARK: weights

  private static func openWeights(
    _ paths: FolderPaths, in context: ContextPointer, isMapped: Bool
  ) throws(Fault) -> CheckpointPointer {
    let whole = paths.path("model.safetensors")
    if moei_file_exists(whole) != 0 { return try .open(whole, in: context, isMapped: isMapped) }
    let index = paths.path("model.safetensors.index.json")
    if moei_file_exists(index) != 0 { return try .open(index, in: context, isMapped: isMapped) }
    let isPickled = moei_file_exists(paths.path("pytorch_model.bin")) != 0
    if isPickled || moei_file_exists(paths.path("pytorch_model.bin.index.json")) != 0 {
      throw .invalid(
        "the weights are a Python pickle: load them with transformers, and save_pretrained them: \(paths.path(""))")
    }
    throw .invalid(
      "there is neither model.safetensors nor model.safetensors.index.json: \(paths.path("")): download the weights too"
    )
  }
}

extension UnsafeMutablePointer where Pointee == Context {
  /// A caller's text in place of a file's.
  public func withConfig<R>(
    _ text: UnsafePointer<CChar>, _ body: (Family, JSONTree, JSONValue) throws(Fault) -> R
  ) throws(Fault) -> R {
    let (allocator, name) = (pointee.allocator, cText("options.config"))
    var count = 0
    while text[count] != 0 {
      count += 1
      if count > JSONTree.largest { throw .invalid("options.config: more than \(JSONTree.largest) bytes") }
    }
    let bytes = UnsafeRawPointer(text).assumingMemoryBound(to: UInt8.self)
    let tree = try JSONTree(bytes, count: count, path: name, allocator)
    defer { tree.free(allocator) }
    let (family, language) = try PretrainedSource.family(of: tree.root, name)
    return try body(family, tree, language)
  }
}

/// Paths of files in a folder.
struct FolderPaths {
  private let folder: UnsafePointer<CChar>
  private let memory: UnsafeMutablePointer<CChar>  // [MOEI_PATH_SIZE]
  private let allocator: Allocator
  private static var room: Int { Int(MOEI_PATH_SIZE) }

  init(_ folder: UnsafePointer<CChar>, _ allocator: Allocator) throws(Fault) {
    var length = 0
    while length < Self.room && folder[length] != 0 { length += 1 }
    if length == 0 { throw .invalid("folder is empty") }
    if length > Self.room - 128 { throw .invalid("folder: more than \(Self.room - 128) bytes") }
    (self.folder, self.allocator) = (folder, allocator)
    memory = try allocator.allocate(CChar.self, count: Self.room)
  }

  func free() { allocator.deallocate(memory) }

  /// Until the next one.
  func path(_ name: StaticString) -> UnsafePointer<CChar> {
    var text = TextBuffer(memory, capacity: Self.room)
    text.append(folder)
    text.append("/")
    text.append(name)
    return UnsafePointer(memory)
  }
}
