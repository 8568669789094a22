-- RaftKV over HTTP, 10,000 random keys. Arguments: `put`, or `get` and a read level.
local value = string.rep("v", 256)
local put, suffix
function init(args)
  math.randomseed(os.time())
  put = args[1] == "put"
  suffix = put and "" or "?level=" .. (args[2] or "linearizable")
end
function request()
  local path = string.format("/v1/kv/bench/%05d%s", math.random(0, 9999), suffix)
  if put then return wrk.format("PUT", path, nil, value) end
  return wrk.format("GET", path)
end
