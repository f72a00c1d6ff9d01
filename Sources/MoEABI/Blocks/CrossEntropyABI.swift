import CMoE
import MoE

@implementation @_cdecl("moe_cross_entropy")
public func moe_cross_entropy(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_cross_entropy_config>?, _ x: UnsafePointer<Float>?,
  _ weight: UnsafeRawPointer?, _ targets: UnsafePointer<Int32>?, _ loss: UnsafeMutablePointer<Double>?,
  _ counted: UnsafeMutablePointer<Int64>?, _ token_losses: UnsafeMutablePointer<Float>?,
  _ dx: UnsafeMutablePointer<Float>?, _ dweight: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let ofX = try ArraySize(config.n_tokens, "n_tokens", config.hidden_size, "hidden_size")
    let ofWeight = try ArraySize(config.vocabulary_size, "vocabulary_size", config.hidden_size, "hidden_size")
    let type = try elementType(config.weight_dtype, "weight_dtype")
    try requireFloat(config.d_loss, "d_loss")
    var form = try LogitForm(config)
    form.bias = try operands.reads(optional: config.bias, ofWeight.rows, "config.bias")
    if config.dbias != nil && config.bias == nil { throw .invalid("config.dbias is not NULL, but config.bias is") }
    let x = try operands.reads(x, ofX.elements, "x")
    let weight = try operands.reads(weight, ofWeight.elements, of: type, "weight")
    let targets = try operands.reads(targets, ofX.rows, "targets")
    let ignored = config.ignore_index
    for t in 0..<ofX.rows where targets[t] != ignored && (targets[t] < 0 || Int(targets[t]) >= ofWeight.rows) {
      throw .invalid(
        "targets[\(t)] = \(Int(targets[t])) is not one of vocabulary_size = \(ofWeight.rows), nor ignore_index = \(Int(ignored))"
      )
    }
    let loss = try operands.writes(loss, 1, "loss")
    let counted = try operands.writes(optional: counted, 1, "counted")
    let outputs = CrossEntropy.Targets(
      tokenLosses: try operands.writes(optional: token_losses, ofX.rows, "token_losses"),
      dx: try operands.writes(optional: dx, ofX.elements, "dx"),
      dWeight: try operands.writes(optional: dweight, ofWeight.elements, "dweight"),
      dBias: try operands.writes(optional: config.dbias, ofWeight.rows, "config.dbias"))
    var problem = CrossEntropy.Problem(
      x: x, tokens: ofX.rows, hidden: ofX.width, weight: weight, weights: type, vocabulary: ofWeight.rows,
      targets: targets, ignored: ignored, smoothing: config.label_smoothing, dLoss: config.d_loss)
    problem.form = form
    let found = try CrossEntropy.call(problem, outputs, in: context)
    loss.pointee = found.loss
    counted?.pointee = Int64(found.counted)
  }
}

extension LogitForm {
  /// All but the bias.
  fileprivate init(_ config: moe_cross_entropy_config) throws(Fault) {
    self.init()
    try requireFloat(config.logit_scale, "logit_scale")
    try requireFloat(config.logit_softcap, "logit_softcap")
    if config.logit_scale != 0 { scale = Float(config.logit_scale) }
    cap = Float(config.logit_softcap)
    if cap == 0 && config.logit_softcap != 0 {
      throw .invalid("logit_softcap = \(config.logit_softcap) is 0 in float32")
    }
  }
}
