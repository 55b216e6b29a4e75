"""Who asks: credentials to an `Identity`, the same for gRPC and HTTP.

api_keys        keys as clients have them and as they are kept: by their digest
key_file        the file they are kept in
tokens          JSON Web Tokens that another service has signed
authenticator   a request's `authorization` to an identity, or one answer to all that is wrong
"""
