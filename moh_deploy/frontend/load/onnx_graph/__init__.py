"""An ONNX file as a model in torch: read, checked, cleaned, and interpreted node by node.

file        what the file holds: interface, nodes, weights; refusals of what cannot be read
node        one node: operator, attributes, names of its inputs and outputs
values      what travels between nodes: tensors, and small tensors whose elements are numbers
call        a node together with the values of its inputs: what an operator is given
module      the module whose forward walks over the nodes, so that torch.export traces them
operators/  a table from operator to function; one file a group, aten calls only
"""
