-- etcd over its HTTP gateway (keys and values in base64), 10,000 random keys. Arguments: `put` or `get`.
local digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local function base64(text)
  local out = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local n = a * 65536 + (b or 0) * 256 + (c or 0)
    for j = 3, 0, -1 do
      local digit = math.floor(n / 64 ^ j) % 64
      out[#out + 1] = digits:sub(digit + 1, digit + 1)
    end
    if not b then out[#out - 1] = "=" end
    if not c then out[#out] = "=" end
  end
  return table.concat(out)
end
local bodies, path = {}, nil
function init(args)
  math.randomseed(os.time())
  path = args[1] == "put" and "/v3/kv/put" or "/v3/kv/range"
  local value = base64(string.rep("v", 256))
  for i = 0, 9999 do
    local key = base64(string.format("bench/%05d", i))
    bodies[i] = args[1] == "put" and string.format('{"key":"%s","value":"%s"}', key, value)
      or string.format('{"key":"%s"}', key)
  end
end
function request() return wrk.format("POST", path, nil, bodies[math.random(0, 9999)]) end
