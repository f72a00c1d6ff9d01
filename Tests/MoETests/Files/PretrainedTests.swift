import CMoE
import Foundation
import Testing

/// Whole models in folders.
@Suite("Pretrained models") final class PretrainedTests {
  private let folder: Folder
  private let context: OpaquePointer
  private let allocator = CountingAllocator()

  init() throws {
    folder = try Folder()
    var made: OpaquePointer?
    var config = allocator.contextConfig
    try check(moe_context_create(&config, &made))
    context = try #require(made)
  }

  deinit { moe_context_free(context) }

  // MARK: a small Qwen3-MoE

  private let config: [String: String] = [
    "model_type": "\"qwen3_moe\"", "vocab_size": "11", "hidden_size": "8", "num_hidden_layers": "2",
    "num_attention_heads": "2", "num_key_value_heads": "1", "head_dim": "4", "intermediate_size": "6",
    "moe_intermediate_size": "4", "num_experts": "3", "num_experts_per_tok": "2", "norm_topk_prob": "true",
    "decoder_sparse_step": "2", "dtype": "\"float32\"", "rms_norm_eps": "1e-6", "tie_word_embeddings": "false",
    "rope_parameters": "{\"rope_theta\": 10000.0, \"rope_type\": \"default\"}", "use_cache": "true",
  ]

  private func text(_ changes: [String: String?] = [:]) -> String {
    var all = config
    for (key, value) in changes { all[key] = value }
    return "{" + all.sorted { $0.key < $1.key }.map { "\"\($0.key)\": \($0.value)" }.joined(separator: ",\n") + "}"
  }

  private func shapes() -> [(String, [Int])] {
    var all = [("model.embed_tokens.weight", [11, 8]), ("model.norm.weight", [8]), ("lm_head.weight", [11, 8])]
    for n in 0..<2 {
      let layer = "model.layers.\(n)."
      all += [
        (layer + "input_layernorm.weight", [8]), (layer + "post_attention_layernorm.weight", [8]),
        (layer + "self_attn.q_proj.weight", [8, 8]), (layer + "self_attn.k_proj.weight", [4, 8]),
        (layer + "self_attn.v_proj.weight", [4, 8]), (layer + "self_attn.o_proj.weight", [8, 8]),
        (layer + "self_attn.q_norm.weight", [4]), (layer + "self_attn.k_norm.weight", [4]),
      ]
    }
    for name in ["gate_proj", "up_proj"] { all.append(("model.layers.0.mlp.\(name).weight", [6, 8])) }
    all += [("model.layers.0.mlp.down_proj.weight", [8, 6]), ("model.layers.1.mlp.gate.weight", [3, 8])]
    for e in 0..<3 {
      for name in ["gate_proj", "up_proj"] { all.append(("model.layers.1.mlp.experts.\(e).\(name).weight", [4, 8])) }
      all.append(("model.layers.1.mlp.experts.\(e).down_proj.weight", [8, 4]))
    }
    return all
  }

  /// Writes weights; every tensor's numbers are its place among all names, then what counts up.
  private func writeWeights(_ shapes: [(String, [Int])], to name: String = "model.safetensors") throws {
    var (header, data, entries) = ("", [UInt8](), [String]())
    for (number, (name, shape)) in shapes.enumerated() {
      let count = shape.reduce(1, *)
      let values = (0..<count).map { Float(number) + Float($0) / 1024 }
      let begin = data.count
      values.withUnsafeBytes { data += Array($0) }
      entries.append("\"\(name)\":{\"dtype\":\"F32\",\"shape\":\(shape),\"data_offsets\":[\(begin),\(data.count)]}")
    }
    header = "{" + entries.joined(separator: ",") + "}"
    _ = try folder.write(name, safetensors(header, data))
  }

  private func writeFolder(_ changes: [String: String?] = [:]) throws {
    _ = try folder.write("config.json", Array(text(changes).utf8))
    try writeWeights(shapes())
  }

  private func load(_ change: (inout moe_pretrained_options) -> Void = { _ in }) -> (moe_status, OpaquePointer?) {
    var options = moe_pretrained_options()
    moe_pretrained_options_init(&options, MemoryLayout<moe_pretrained_options>.size)
    change(&options)
    var model: OpaquePointer?
    return (moe_model_load(context, folder.path, &options, &model), model)
  }

  private func values(_ model: OpaquePointer, _ name: String) throws -> [Float] {
    var (index, tensor) = (Int64(0), moe_tensor())
    try check(moe_model_find_parameter(model, name, &index))
    tensor.struct_size = MemoryLayout<moe_tensor>.size
    try check(moe_model_parameter(model, index, &tensor))
    let count = [tensor.shape.0, tensor.shape.1, tensor.shape.2].prefix(Int(tensor.rank)).reduce(1, *)
    return Array(UnsafeBufferPointer(start: tensor.data!.assumingMemoryBound(to: Float.self), count: Int(count)))
  }

  private func number(of name: String) throws -> Float {
    Float(try #require(shapes().firstIndex { $0.0 == name }))
  }

  // MARK: reading

  @Test func everyTensorIsWhereItBelongs() throws {
    try writeFolder()
    let (status, loaded) = load()
    try check(status)
    let model = try #require(loaded)
    defer { moe_model_free(model) }
    let qkv = try values(model, "layers.1.attention.qkv.weight")
    let layer = "model.layers.1."
    #expect(qkv[0] == (try number(of: layer + "self_attn.q_proj.weight")))
    #expect(qkv[8 * 8] == (try number(of: layer + "self_attn.k_proj.weight")))
    #expect(qkv[12 * 8 + 9] == (try number(of: layer + "self_attn.v_proj.weight")) + 9.0 / 1024)
    #expect(try values(model, "output.weight")[0] == (try number(of: "lm_head.weight")))
    #expect(
      try values(model, "layers.0.ffn.experts.down.weight")[5]
        == (try number(of: "model.layers.0.mlp.down_proj.weight")) + 5.0 / 1024)
    let gates = try values(model, "layers.1.ffn.experts.gate.weight")
    #expect(gates[2 * 32 + 31] == (try number(of: layer + "mlp.experts.2.gate_proj.weight")) + 31.0 / 1024)
  }

  @Test func aFolderIsDescribed() throws {
    try writeFolder()
    var opened: OpaquePointer?
    try check(moe_pretrained_open(context, folder.path, nil, &opened))
    defer { moe_pretrained_free(opened) }
    var info = moe_pretrained_info()
    moe_pretrained_info_init(&info, MemoryLayout<moe_pretrained_info>.size)
    try check(moe_pretrained_describe(opened, &info))
    #expect(String(cString: info.model_type) == "qwen3_moe")
    #expect(info.n_parameters == Int64(shapes().map { $0.1.reduce(1, *) }.reduce(0, +)))
    #expect(info.file_bytes == 4 * Int(info.n_parameters) && info.n_moe_layers == 1)
    // One of three experts stays aside.
    #expect(info.n_parameters - info.n_active == 96)
    #expect(String(cString: info.ignored_keys).contains("use_cache"))
    var config = moe_model_config()
    moe_model_config_init(&config, MemoryLayout<moe_model_config>.size)
    try check(moe_pretrained_config(opened, &config))
    #expect(config.n_heads == 2 && config.n_kv_heads == 1 && config.rope_theta == 10000 && config.moe_every == 2)
    #expect(config.moe.pointee.n_experts == 3 && config.moe.pointee.top_k == 2 && config.dense_intermediate_size == 6)
    var model: OpaquePointer?
    try check(moe_model_create(context, &config, &model))
    try check(moe_pretrained_load(opened, model))
    moe_model_free(model)
    refused("pretrained", moe_pretrained_load(nil, nil))
    refused("info", moe_pretrained_describe(opened, nil))
    refused("config", moe_pretrained_config(opened, nil))
  }

  @Test func familiesAreListed() {
    var names = Set<String>()
    var index: Int64 = 0
    while let name = moe_pretrained_family(index) {
      names.insert(String(cString: name))
      index += 1
    }
    #expect(names.isSuperset(of: ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama"]))
    #expect(moe_pretrained_family(-1) == nil && moe_pretrained_family(.max) == nil)
  }

  // MARK: writing

  @Test func whatIsSavedIsLoadedAgain() throws {
    try writeFolder()
    let (status, loaded) = load()
    try check(status)
    let model = try #require(loaded)
    defer { moe_model_free(model) }
    let before = try values(model, "layers.1.attention.qkv.weight")
    for most in [0, 600, 0] {
      var options = moe_save_options()
      moe_save_options_init(&options, MemoryLayout<moe_save_options>.size)
      options.max_shard_size = most
      try check(moe_model_save(model, folder.path, &options))
      #expect(try folder.contents().contains("model.safetensors") == (most == 0))
      #expect(try folder.contents().contains("model.safetensors.index.json") == (most != 0))
      let (status, again) = load()
      try check(status)
      #expect(try values(try #require(again), "layers.1.attention.qkv.weight") == before)
      moe_model_free(again)
    }
    // The names are those of the folder.
    let checkpoint = try OpenCheckpoint(folder.file("model.safetensors"), in: context)
    #expect(try Set(checkpoint.tensors().map(\.name)) == Set(shapes().map(\.0)))
  }

  @Test func theTypeGoesIntoTheConfig() throws {
    try writeFolder()
    let (status, model) = load()
    try check(status)
    defer { moe_model_free(model) }
    var options = moe_save_options()
    moe_save_options_init(&options, MemoryLayout<moe_save_options>.size)
    options.dtype = Int32(MOE_FOLDER_DTYPE_BF16.rawValue)
    try check(moe_model_save(model, folder.path, &options))
    let written = try String(contentsOfFile: folder.file("config.json"), encoding: .utf8)
    #expect(written == text(["dtype": "\"bfloat16\""]))
  }

  @Test func aModelThatCameFromNowhereTakesAConfig() throws {
    try writeFolder()
    var (opened, model): (OpaquePointer?, OpaquePointer?)
    try check(moe_pretrained_open(context, folder.path, nil, &opened))
    defer { moe_pretrained_free(opened) }
    var config = moe_model_config()
    moe_model_config_init(&config, MemoryLayout<moe_model_config>.size)
    try check(moe_pretrained_config(opened, &config))
    try check(moe_model_create(context, &config, &model))
    defer { moe_model_free(model) }
    let other = folder.file("other")
    refused("config", moe_model_save(model, other, nil))
    var options = moe_save_options()
    moe_save_options_init(&options, MemoryLayout<moe_save_options>.size)
    try text(["num_key_value_heads": "2"]).withCString {
      options.config = $0
      refused("num_key_value_heads", moe_model_save(model, other, &options))
    }
    try text().withCString {
      options.config = $0
      try check(moe_model_save(model, other, &options))
    }
    var again: OpaquePointer?
    try check(moe_model_load(context, other, nil, &again))
    #expect(try values(try #require(again), "embed.weight") == (try values(try #require(model), "embed.weight")))
    moe_model_free(again)
  }

  // MARK: what is refused

  @Test func whatTheConfigSaysWrongIsNamed() throws {
    let cases: [(String, String?, String)] = [
      ("model_type", "\"jamba\"", "jamba"), ("model_type", "\"nobody\"", "nobody"), ("model_type", nil, "model_type"),
      ("hidden_size", nil, "hidden_size"), ("hidden_size", "-8", "hidden_size"),
      ("hidden_size", "1e300", "hidden_size"),
      ("hidden_size", "8.5", "hidden_size"), ("hidden_size", "\"8\"", "hidden_size"),
      ("hidden_size", "16", "embed_tokens"),
      ("num_hidden_layers", "2147483647", "num_hidden_layers"), ("num_hidden_layers", "3", "num_hidden_layers"),
      ("num_attention_heads", "0", "num_attention_heads"), ("num_key_value_heads", "7", "num_key_value_heads"),
      ("head_dim", "99999999", "head_dim"), ("vocab_size", "2000000000", "embed_tokens"),
      ("num_experts", "1000000000", "gate"),
      ("hidden_act", "\"gelu\"", "hidden_act"), ("a_new_key", "1", "a_new_key"), ("layer_norm", "true", "layer_norm"),
      ("norm_topk_prob", "3", "norm_topk_prob"), ("rms_norm_eps", "true", "rms_norm_eps"),
      ("rope_parameters", "{\"rope_type\": \"dynamic\"}", "rope_type"),
      ("rope_parameters", "{\"rope_type\": \"yarn\"}", "original_max_position_embeddings"),
      (
        "rope_parameters", "{\"rope_type\": \"yarn\", \"original_max_position_embeddings\": 8, \"factor\": 0}",
        "factor"
      ),
      ("rope_parameters", "{\"rope_theta\": 0.5}", "rope_theta"), ("rope_parameters", "[1]", "rope_parameters"),
      ("rope_parameters", "{\"strange\": 1}", "strange"), ("mlp_only_layers", "[1.5]", "mlp_only_layers"),
      ("mlp_only_layers", "\"all\"", "mlp_only_layers"), ("decoder_sparse_step", "0", "decoder_sparse_step"),
      ("quantization_config", "{\"quant_method\": \"quip\"}", "quantization_config"),
    ]
    for (key, value, named) in cases {
      try writeFolder([key: value])
      refused(named, load().0)
    }
    _ = try folder.write("config.json", Array("{\"model_type\": \"qwen3_moe\", \"model_type\": \"llama\"}".utf8))
    refused("JSON", load().0)
    _ = try folder.write("config.json", Array("{\"model_type\": ".utf8))
    refused("JSON", load().0)
    _ = try folder.write("config.json", [])
    refused("empty", load().0)
  }

  @Test func tensorsThatAreMissingMisshapenOrTooManyAreNamed() throws {
    try writeFolder()
    let all = shapes()
    try writeWeights(all.filter { $0.0 != "model.layers.1.self_attn.v_proj.weight" })
    refused("v_proj", load().0)
    try writeWeights(all.map { $0.0 == "model.layers.1.self_attn.v_proj.weight" ? ($0.0, [8, 4]) : $0 })
    refused("v_proj", load().0)
    for name in [
      "model.layers.1.self_attn.q_proj.bias", "model.layers.0.mlp.shared_expert.up_proj.weight", "other.weight",
    ] {
      try writeWeights(all + [(name, [8])])
      refused(String(name.split(separator: ".").dropLast().last!), load().0)
    }
    // Tables that follow from the configuration are left.
    try writeWeights(all + [("model.layers.0.self_attn.rotary_emb.inv_freq", [2])])
    let (status, model) = load()
    try check(status)
    moe_model_free(model)
  }

  @Test func weightsThatAreNotThereAreNamed() throws {
    _ = try folder.write("config.json", Array(text().utf8))
    refused("safetensors", load().0)
    for name in ["../model.safetensors", "/etc/passwd", "a/b", ""] {
      let index = "{\"weight_map\": {\"model.norm.weight\": \"\(name)\"}}"
      _ = try folder.write("model.safetensors.index.json", Array(index.utf8))
      refused("weight_map", load().0)
    }
    let index = "{\"weight_map\": {\"model.norm.weight\": \"model-00001-of-00002.safetensors\"}}"
    _ = try folder.write("model.safetensors.index.json", Array(index.utf8))
    refused("00001", load().0, MOE_ERROR_IO)
  }

  // MARK: over ranks; the Python tests have several

  @Test func oneRankReadsAndWritesAsAModelWithoutRanks() throws {
    try writeFolder()
    let (status, plain) = load()
    try check(status)
    defer { moe_model_free(plain) }
    var (communicator, spread, opened) = (alone(), OpaquePointer?.none, OpaquePointer?.none)
    try check(moe_model_load_distributed(context, folder.path, nil, &communicator, nil, &spread))
    defer { moe_model_free(spread) }
    let name = "layers.1.ffn.experts.down.weight"
    let (model, expected) = (try #require(spread), try values(try #require(plain), name))
    #expect(try values(model, name) == expected)

    var (index, tensor) = (Int64(0), moe_tensor())
    try check(moe_model_find_parameter(model, name, &index))
    tensor.struct_size = MemoryLayout<moe_tensor>.size
    try check(moe_model_parameter(model, index, &tensor))
    tensor.data!.assumingMemoryBound(to: Float.self)[3] = 9
    try check(moe_pretrained_open(context, folder.path, nil, &opened))
    defer { moe_pretrained_free(opened) }
    try check(moe_pretrained_load(opened, model))
    #expect(try values(model, name) == expected)

    for (model, other) in [(plain, "a"), (spread, "b")] { try check(moe_model_save(model, folder.file(other), nil)) }
    let file = "/model.safetensors"
    #expect(try folder.bytes("a" + file) == folder.bytes("b" + file))
  }

  @Test func anErrorOverRanksLeavesNothing() throws {
    try writeFolder()
    let before = allocator.liveBytes
    var (communicator, model) = (alone(), OpaquePointer?.none)
    refused("out", moe_model_load_distributed(context, folder.path, nil, &communicator, nil, nil))
    refused("communicator", moe_model_load_distributed(context, folder.path, nil, nil, nil, &model))
    try writeWeights(Array(shapes().dropLast()))
    refused("down_proj", moe_model_load_distributed(context, folder.path, nil, &communicator, nil, &model))
    #expect(model == nil && allocator.liveBytes == before)
  }

  @Test func anErrorLeavesNothing() throws {
    try writeFolder()
    let before = allocator.liveBytes
    try writeWeights(Array(shapes().dropLast()))
    refused("down_proj", load().0)
    #expect(allocator.liveBytes == before)
    try writeFolder()
    let (status, model) = load {
      $0.progress = { _, done, total in done > total / 2 ? 1 : 0 }
    }
    #expect(status == MOE_ERROR_CANCELLED && model == nil)
    #expect(allocator.liveBytes == before)
  }

  @Test func wrongArgumentsAreRefused() throws {
    var model: OpaquePointer?
    refused("context", moe_model_load(nil, folder.path, nil, &model))
    refused("folder", moe_model_load(context, nil, nil, &model))
    #expect(moe_model_load(context, "", nil, &model) == MOE_ERROR_IO && lastError().contains("folder"))
    #expect(moe_model_load(context, folder.path, nil, &model) == MOE_ERROR_IO && lastError().contains("config"))
    try writeFolder()
    refused("out", moe_model_load(context, folder.path, nil, nil))
    refused("out", moe_pretrained_open(context, folder.path, nil, nil))
    refused("weight_dtype", load { $0.weight_dtype = 9 }.0)
    refused("embedding_dtype", load { $0.embedding_dtype = 3 }.0)
    refused("prepared", load { $0.prepared = 1 }.0)
    refused("resident_limit", load { $0.resident_limit = 1 }.0)
    refused("model", moe_model_save(nil, folder.path, nil))
    moe_pretrained_free(nil)
  }
}
