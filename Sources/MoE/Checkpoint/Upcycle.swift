import CShims

extension Layer {
  /// Every expert becomes a copy of one dense network [Sparse upcycling 2023, arXiv:2212.05055]. `dense` gives what is called
  /// as the experts' parameter without "experts.", for one expert: its values, of the type and as many as one expert's.
  public func upcycle(_ dense: (UnsafePointer<CChar>) -> (data: UnsafeRawPointer, type: ElementType)) {
    forEachExpertParameter { parameter, name in
      let source = dense(name)
      let values = StoredValues(form: StoredForm(source.type), data: source.data)
      let count = parameter.count / parameter.shape.0
      let target = ParameterValues(parameter, context.kernels)
      for expert in 0..<parameter.shape.0 { target.write(expert * count, count, from: values, 0, stride: 1) }
    }
  }

  /// The experts' parameters and their names without "experts.".
  public func forEachExpertParameter<E: Error>(
    _ body: (Parameter, UnsafePointer<CChar>) throws(E) -> Void
  ) throws(E) {
    for index in 0..<parameterCount {
      let parameter = parameter(index)
      if let name = text(parameter.name, after: cText("experts.")) { try body(parameter, name) }
    }
  }
}
